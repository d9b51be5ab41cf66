"""Bugs in the CPU kernels and in what all kernels share."""

from __future__ import annotations

from .bug import Bug

CPU_BUGS = {
    "causal mask off by one": Bug("common/mask.h", "seqlen_q + right + 1;", "seqlen_q + right;"),
    "causal diagonal at the top left": Bug("common/mask.h", "row + seqlen_k - seqlen_q + right", "row + right"),
    "window one key too wide": Bug("common/mask.h", "- window_left;", "- window_left - 1;"),
    "seqused_k ignored": Bug("common/seqlen.h", "if (seqused_k) s.", "if (false) s."),
    "packed keys start at the query offset": Bug(
        "common/seqlen.h", "s.row_k = cu_seqlens_k[batch];", "s.row_k = cu_seqlens_q[batch];"
    ),
    "offsets in 32 bits": Bug(
        "cpu/attention_pack.h",
        "(batch * view.stride_batch + head",
        "(static_cast<int32_t>(batch * view.stride_batch) + head",
    ),
    "keys behind the last one seen": Bug("cpu/attention_tile.h", "min64(kGroup, end - col)", "int64_t{kGroup}"),
    "no correction for the bias of Q": Bug(
        "cpu/attention_pack.h", "seeds[position] = -seeds[position];", "seeds[position] = 0;"
    ),
    "key scale of the wrong key": Bug(
        "cpu/attention_pack.h", "scales[score_position<Isa>(key)] = scale", "scales[key] = scale"
    ),
    "negative softmax scale not folded into Q": Bug(
        "cpu/attention_kernel.h", "p_.softmax_scale < 0 ? -scale.inverse : scale.inverse", "scale.inverse"
    ),
    "16-bit probabilities overflow the sum": Bug(
        "cpu/attention_pack.h", "kBits == 8 ? 255.f : 8191.f", "kBits == 8 ? 255.f : 16383.f"
    ),
    "old output not rescaled": Bug(
        "cpu/attention_tile.h", "take, Isa::mul(Isa::load(out), keep))", "take, Isa::load(out))"
    ),
    "maximum of the masked scores kept": Bug(
        "cpu/attention_tile.h", "    row_max[r] = top;\n  }\n}", "    (void)top;\n  }\n}"
    ),
    "finite mask value becomes -inf": Bug(
        "cpu/attention_tile.h", "x < -kFloatMax ? -kFloatMax : x", "x < -kFloatMax ? -kInfinity : x"
    ),
    "additive mask not in base 2": Bug("cpu/attention_tile.h", "bias[j] * kLog2e, bounded", "bias[j], bounded"),
    "mask read as if contiguous": Bug("cpu/attention_tile.h", "src[j * stride_k] ?", "src[j] ?"),
    "LSE from the rounded probabilities": Bug(
        "cpu/attention_tile.h",
        "exact = Isa::add(exact, y[v]);",
        "exact = Isa::add(exact, Isa::to_float(Isa::round(y[v])));",
    ),
    "LSE not corrected for the mean of K": Bug(
        "cpu/attention_kernel.h", "= Isa::sum(shift) * p_.softmax_scale;", "= 0;"
    ),
    "wrong head of K and V": Bug(
        "cpu/attention_kernel.h", "at.head / (p_.num_heads_q / p_.num_heads_kv)", "at.head % p_.num_heads_kv"
    ),
    "V scaled by the maximum of its last chunk": Bug(
        "cpu/attention_kernel.h", "amax_bits[c] = amax_bits[c] > bits ? amax_bits[c] : bits;", "amax_bits[c] = bits;"
    ),
    "row without keys not zeroed": Bug("cpu/attention_kernel.h", "visible ? scaled : Isa::set(0.f)", "scaled"),
    "NaN swallowed": Bug("cpu/attention_kernel.h", "= !scale.finite || !keys_finite;", "= false;"),
    "last partial strip skipped": Bug(
        "cpu/attention_kernel.h", "strips = ceil_div(rows, kRows);", "strips = max64(1, rows / kRows);"
    ),
}
