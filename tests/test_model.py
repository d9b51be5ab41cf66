"""The model of tools/predict.py: it never beats the peak, follows its instruction mix, and gives what is known."""

from __future__ import annotations

import itertools
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from building import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tools"))
import kernels  # noqa: E402
import nvfp4  # noqa: E402
import predict  # noqa: E402
import simulate  # noqa: E402
from simulate import Latency, Tensor, Vector, cycles_per_round  # noqa: E402

del sys.path[0]

H100 = kernels.gpus()["H100"]
KNOWN = kernels.known_kernels()
W3PK = KNOWN["prototype W3PK"]
ALL = [(gpu, kernel) for gpu in kernels.gpus() for kernel in kernels.library_kernels(gpu)]


def test_no_kernel_beats_a_bound() -> None:
    assert len(ALL) > 30
    for name, kernel in ALL:
        gpu = kernels.gpus()[name]
        bound = kernels.peak_cycles(kernel, gpu) / max(kernels.pipe_cycles(kernel, gpu).values())
        share = predict.share_of_peak(kernel, gpu)
        assert share <= bound * 1.01 and bound <= 1.0001, f"{kernel.name} on {name}: {share} of {bound}"
        assert share * predict.factors()[name] <= 1


def test_calibration_and_what_must_hold() -> None:
    """Upstream's 882 TFLOPS on an H100, and of our kernels at least 58 % of the peak at every length."""
    assert predict.share_of_peak(KNOWN["upstream sm90"], H100) * predict.factors()["H100"] == pytest.approx(
        882 / 1979, rel=1e-3
    )
    ours = {kernel.name: kernel for _, kernel in ALL if re.fullmatch(r"sm90_fwd_wgmma\w*_d128", kernel.name)}
    assert ours.keys() == {"sm90_fwd_wgmma_d128", "sm90_fwd_wgmma_approx_d128"}, "python tests/sass.py --update"
    for kernel, seqlen in itertools.product([W3PK, *ours.values()], predict.SEQLENS):
        share = predict.share_of_peak(kernels.at_seqlen(kernel, seqlen), H100) * predict.factors()["H100"]
        assert share >= 0.58, f"{kernel.name} at {seqlen}"


def test_known_mixes_are_of_their_tiles() -> None:
    """Their tensor instructions multiply what their tiles hold (and a column of ones, as ours and upstream's sm80 have it),
    and each score takes one exp2; also a conversion where that is on the same pipe, in the prototype with linear codes
    a quarter less, and with NVFP4 P one more for the scale of each half block."""
    exponentials = {"upstream sm80": 2, "prototype W3PKA4": 0.75, "upstream sm120 FP4": 1.125}
    for name, kernel in KNOWN.items():
        operations = sum(count * kernels.operations_of(opcode) for opcode, count in kernel.tensor.items())
        ones = 2 * kernel.rows * kernel.keys * 8
        assert operations - kernel.operations in (0, ones), name
        least = kernel.rows * kernel.keys / 32 * exponentials.get(name, 1)
        assert least <= kernel.xu <= least + 4, name
        assert kernel.maximum <= kernel.alu and kernel.fold <= kernel.fma, name


@pytest.mark.parametrize("field", ["xu", "alu", "fma", "other", "rescale"])
def test_more_work_is_not_faster(field: str) -> None:
    shares = []
    for times in (0.5, 1, 2, 4):
        kernel = replace(W3PK, **{field: (0.25 if field == "rescale" else getattr(W3PK, field)) * times})
        shares.append(predict.share_of_peak(kernel, H100))
    assert all(b <= a * 1.01 for a, b in itertools.pairwise(shares)), shares
    assert shares[-1] < shares[0] * 0.99


def test_simulation_of_what_can_be_added_up() -> None:
    """A lone warp takes the sum; enough warps are held up by the tensor cores, or by a pipe, alone."""
    tensor, vector = Tensor(500), Vector(xu=50, other=30)
    lone = cycles_per_round((tensor, Latency(60), vector), 1, H100)
    assert lone == pytest.approx(500 + 60 + 400, rel=0.02)  # exp2 takes 8 cycles
    assert cycles_per_round((tensor, Latency(60), vector), 4, H100) == pytest.approx(500, rel=0.02)
    assert cycles_per_round((Tensor(100), Latency(60), vector), 4, H100) == pytest.approx(400, rel=0.04)
    assert cycles_per_round((vector,), 1, H100) == pytest.approx(400, rel=0.02)
    issue = Vector(fma=70)
    assert cycles_per_round((issue,), 1, H100) == pytest.approx(70 / simulate.LONE_WARP_IPC, rel=0.02)
    assert cycles_per_round((issue,), 3, H100) == pytest.approx(70, rel=0.02)


def test_a_second_half_overlaps_the_first() -> None:
    half = Vector(xu=32)
    whole = cycles_per_round((half, half, Tensor(256)), 1, H100)
    assert cycles_per_round((half, Tensor(128, awaited=False), half, Tensor(128)), 1, H100) < whole - 100


def test_service_is_ahead_of_those_it_works_for() -> None:
    """They wait for it where it takes longer; where it does not, it takes of the pipes and tensor cores what it takes."""
    math = (Tensor(100), Vector(fma=70))
    alone = cycles_per_round(math, 2, H100)
    assert alone == pytest.approx(100, rel=0.02)
    assert cycles_per_round(math, 2, H100, (Latency(1000),)) == pytest.approx(500, rel=0.02)  # for two warps' tiles
    assert cycles_per_round(math, 2, H100, (Latency(50),)) == pytest.approx(alone, rel=0.04)
    assert cycles_per_round(math, 2, H100, (Tensor(50),)) == pytest.approx(alone + 25, rel=0.04)


def test_lazy_references_move_seldom() -> None:
    """In the first step all do; later ones need two octaves more, which a warp's 16 rows see once or twice in 32k keys."""
    assert kernels.lazy_share(64, 16, 64) == 1
    moves = {seqlen: kernels.lazy_share(seqlen, 16, 64) * seqlen / 64 for seqlen in predict.SEQLENS}
    assert 1 <= moves[1024] < moves[8192] < moves[32768] < 16, moves
    assert kernels.lazy_share(8192, 16, 64, headroom=0.0) > 2 * kernels.lazy_share(8192, 16, 64)


def fp4_kernels() -> dict[str, tuple[kernels.Kernel, dict]]:
    found = {kernel.name: (kernel, x) for kernel, x in kernels.library_records("sm120_fp4-sm_120a")}
    assert len(found) == 4, "python tests/sass.py --update"
    return found


def test_block_scaled_kernels() -> None:
    """Q's mean costs tensor time and copies; P V in FP8 half the rate, if QMMA takes as long as OMMA. Upstream's figures
    are beaten at head_dim 128."""
    gpu = kernels.gpus()["RTX 5090"]
    for name, (kernel, values) in fp4_kernels().items():
        plain = kernels.block_scaled(kernel, values, smooth_q=False)
        assert kernel.slots_per_score == pytest.approx(values["slots_per_score"], abs=1e-3)
        ones = 2 * 2 * kernel.rows * kernel.keys * 8 / kernel.operations
        tensor, without = (kernels.pipe_cycles(x, gpu)["tensor"] for x in (kernel, plain))
        ideal = kernels.peak_cycles(kernel, gpu)
        fp8 = "_fp8_" in name
        assert without == pytest.approx(ideal * (1 + ones * (2 / 3 if fp8 else 1 / 2)))
        mean = values["service_tensor"] / 2 * 16  # OMMA, of which two warps have a half each
        assert tensor == without + mean and kernel.copied - plain.copied == 72 * kernel.head_dim
        assert ideal == (24 if fp8 else 16) * kernel.head_dim / 128 * kernel.rows * kernel.keys / 32
        assert nvfp4.with_qmma(gpu, 16) == gpu  # what facts.json infers
        fast = nvfp4.with_qmma(gpu, 8)
        assert kernels.peak_tflops(kernel, fast) == pytest.approx(1676, rel=1e-3)
    kernel, _ = fp4_kernels()["sm120_fp4_fwd_nvfp4_d128"]
    factor = min(predict.factors()["RTX 5090"], nvfp4.fp4_factor(gpu, predict.share_of_peak))
    assert predict.share_of_peak(kernel, gpu) * factor * kernels.peak_tflops(kernel, gpu) > 1027
    with pytest.raises(ValueError, match="the model knows no unrolled loop"):
        kernels.recorded(kernel.name, fp4_kernels()[kernel.name][1] | {"slots_per_score": kernel.slots_per_score / 2})


def test_what_a_call_moves() -> None:
    """Of 4 x 32 heads with 1024 keys: 10 bytes read per element, k and v twice, and 4.5 bits a value and plane written."""
    gpu = kernels.gpus()["RTX 5090"]
    (kernel, _), (fp8, _) = (fp4_kernels()[f"sm120_fp4_fwd_{x}_d128"] for x in ("nvfp4", "fp8"))
    elements = 4 * 32 * 1024 * 128
    x = nvfp4.call(kernel, True, gpu, 0.5, 1024)
    assert x.moved == elements * (10 + 4 * 4.5 / 8) and x.operations == 4 * 128 * 1024 * 1024 * 128
    assert nvfp4.call(kernel, False, gpu, 0.5, 1024).moved == elements * (10 + 3 * 4.5 / 8)
    assert nvfp4.call(fp8, True, gpu, 0.5, 1024).moved == elements * (10 + 3 * 4.5 / 8 + 1)
    assert x.best == pytest.approx(x.quantize - elements * 4 / (0.8 * 1792e9))  # 67 MB of 96
    assert nvfp4.call(kernel, True, gpu, 0.5, 2048).best == nvfp4.call(kernel, True, gpu, 0.5, 2048).quantize
    assert nvfp4.fill(gpu, 1024) == 1024 / (7 * 170) and nvfp4.fill(gpu, 32768) > 0.99


def test_moving_share() -> None:
    """As a count over random scores has it, in either order of the steps."""
    generator, moved, steps, rows = random.Random(1), 0, 8, 16
    for _ in range(400):
        scores = [[max(generator.random() for _ in range(4)) for _ in range(steps)] for _ in range(rows)]
        moved += sum(any(max(row[: n + 1]) == row[n] for row in scores) for n in range(steps))
    assert kernels.moving_share(8 * 128) == pytest.approx(moved / 400 / steps, abs=0.01)
    assert kernels.moving_share(1) == kernels.moving_share(128) == 1
    assert [round(kernels.moving_share(n), 2) for n in (1024, 8192, 32768)] == [0.96, 0.48, 0.2]


def test_folds() -> None:
    """As the loop of sm90_fwd.cuh has them."""
    for steps, fold_every, tiles in itertools.product(range(1, 40), (2, 3, 7, 32), (1, 2)):
        period, folds = fold_every // tiles, 0
        next_fold = period - 1
        for step in range(steps):
            if step == next_fold and step + 1 < steps:
                folds, next_fold = folds + 1, next_fold + period
        folds += next_fold != period - 1
        assert kernels.num_folds(steps, fold_every, tiles) == folds, (steps, fold_every, tiles)


def test_tensor_instructions() -> None:
    assert kernels.operations_of("IMMA.16832.S8.S8") == kernels.operations_of("QMMA.SF.16832.F32.E4M3.E4M3.E8") == 8192
    omma = "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"
    assert kernels.operations_of(omma) == 16384 and kernels.kind_of(omma) == "nvfp4"
    assert kernels.is_qk(omma, {omma: 1, "QMMA.SF.16832.F32.E4M3.E4M3.E8": 1}) and not kernels.is_qk(omma, {omma: 1})
    assert kernels.operations_of("HMMA.16816.F32.BF16") == 4096 and kernels.operations_of("IMMA.16864.S4.S4") == 16384
    assert kernels.operations_of("QGMMA.64x136x32.F32.E4M3.E4M3") == 2 * 64 * 136 * 32 / 4
    assert kernels.tensor_cycles(W3PK, H100) == (256, 272)
    assert kernels.peak_tflops(W3PK, H100) == pytest.approx(1979, rel=1e-3)
    with pytest.raises(ValueError, match="no rate is known for the tensor instruction DMMA.884"):
        kernels.kind_of("DMMA.884")
    with pytest.raises(ValueError, match="no schedule by_hand"):
        predict.program(replace(W3PK, schedule="by_hand"), H100)


def test_records_are_read_per_tile() -> None:
    """An unrolled loop of wgmma has two tiles."""
    tensor = {"IGMMA.64x128x32.S8.S8": 8, "QGMMA.64x136x32.F32.E4M3.E4M3": 8}
    values = {"tensor": tensor, "xu": 128, "alu": 283, "fma": 138, "memory": 10, "uniform": 32, "other": 28}
    kernel = kernels.recorded("sm90_fwd_wgmma_d128", values)
    assert kernel.slots_per_score == pytest.approx(619 / 128) and kernel.tensor["IGMMA.64x128x32.S8.S8"] == 4
    assert predict.share_of_peak(kernel, H100) == pytest.approx(predict.share_of_peak(W3PK, H100), rel=0.02)


def test_committed_prediction() -> None:
    committed = (REPOSITORY / "tools" / "prediction.txt").read_text()
    assert committed == predict.report() + "\n", "python tools/predict.py > tools/prediction.txt"


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib (extra bench)")
    picture = tmp_path / "prediction.png"
    monkeypatch.setattr(sys, "argv", ["predict.py", "--clock", "915", "--plot", str(picture)])
    predict.main()
    lines = capsys.readouterr().out.splitlines()
    assert picture.stat().st_size > 10_000
    row = re.compile(r"H100 +prototype W3PK ")
    (half,) = (line.split() for line in lines if row.match(line))
    nominal = next(line.split() for line in predict.report().splitlines() if row.match(line))
    assert int(half[-1]) == pytest.approx(int(nominal[-1]) / 2, abs=1) and half[-2] == nominal[-2]
