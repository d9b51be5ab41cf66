"""A model that knows nothing of sage, run on it: every call of PyTorch's scaled_dot_product_attention is replaced."""

import torch

import sage

torch.manual_seed(0)
torch.backends.mha.set_fastpath_enabled(False)  # PyTorch's fused encoder would not call scaled_dot_product_attention
layer = torch.nn.TransformerEncoderLayer(d_model=256, nhead=4, batch_first=True)
model = torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False).eval()
x = torch.randn(2, 500, 256)

with torch.inference_mode():
    expected = model(x)
    with sage.patch_sdpa(recipe="sage1") as calls:
        out = model(x)

print(f"{calls.served} attention calls ran on sage")
print(f"relative difference of the output  {(out - expected).norm() / expected.norm():.5f}")
