"""Every example runs, explains itself, and shows what it says."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vision import torchvision

assert torchvision  # transformers and Lightning import it, and need it repaired first
EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Callable:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_help_explains_it(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        example(name)(["--help"])
    assert exit_.value.code == 0
    assert f"python examples/{name}.py" in capsys.readouterr().out


def test_quick(capsys):
    comparison = example("quick")(["--width", "128", "--steps", "30", "--neurons", "512"])
    theory, static, same_width = comparison.deviations
    assert same_width.consistency.is_decidable
    assert theory.layers[-1].forward.relative_error[-1] < 0.5 * static.layers[-1].forward.relative_error[-1]
    assert "nearest prediction first: theory" in " ".join(capsys.readouterr().out.split())


def test_quick_is_a_script():
    arguments = ["--width", "16", "--steps", "5", "--neurons", "256"]
    shown = subprocess.run(
        [sys.executable, EXAMPLES / "quick.py", *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Everything else: comparison.details()" in " ".join(shown.stdout.split())
    assert shown.stderr == ""


def test_lr_transfer(tmp_path, capsys):
    figure = tmp_path / "transfer.png"
    best = example("lr_transfer")(f"--widths 32,512 --seeds 2 --figure {figure}".split())
    assert best["mean_field"][32] == best["mean_field"][512]
    assert best["standard"][32] >= 4 * best["standard"][512]
    assert figure.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "stable" in shown
    assert "the best rate moves by a factor 1 in mean-field parameterization" in shown


def test_richness(tmp_path):
    figure = tmp_path / "richness.png"
    found = example("richness")(f"--gammas 0.1,1 --width 256 --steps 30 --neurons 512 --figure {figure}".split())
    for (lazy, lazy_aligned), (rich, rich_aligned) in found.values():
        assert lazy < 0.15
        assert rich > 0.5
        assert rich_aligned > lazy_aligned
    (_, network), (_, theory) = found["network"], found["theory"]
    assert network == pytest.approx(theory, rel=0.25)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_real_run(capsys):
    """Momentum, decay, warmup, cosine and the very batches: every kernel is within what the width explains."""
    comparison = example("real_run")(["--width", "256", "--steps", "90", "--pairs", "4"])
    (theory,) = comparison.deviations
    for layer in theory.layers:
        for kernel in (layer.forward, layer.backward):
            bar = 5 * kernel.relative_error_stderr[-1].nan_to_num(0.0)
            assert kernel.relative_error[-1] <= 7 / 256**0.5 + bar
    assert theory.losses.rms[-1] < 0.1 * comparison.measured.losses[0]
    training = comparison.measured.training
    assert {"momentum", "decay", "schedule", "batches"} == set(training.traits)
    assert training.notes == ()
    assert training.batches_known
    assert "The theory took" in capsys.readouterr().out


def test_cnn_widths(capsys):
    narrow, wide = example("cnn_widths")(["--widths", "4,32,128", "--steps", "40"])
    assert wide.deviations[0].losses.rms.mean() < narrow.deviations[0].losses.rms.mean()
    assert wide.deviations[0].layers[-1].forward.relative_error[-1] < 0.25
    assert wide.deviations[0].layers[-1].forward.alignment[-1] > 0.99
    assert "network (32 channels) against network (128 channels)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_gpt2_trainer(tmp_path, capsys):
    pytest.importorskip("transformers")
    measured = example("gpt2_trainer")(f"--steps 12 --features 32 --blocks 1 --logdir {tmp_path}".split())
    assert [layer.name for layer in measured.layers][-1] == "lm_head"
    assert measured.steps.tolist() == list(range(13))
    assert measured.training.optimizer == "AdamW"
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "The features that move most" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_lightning_resnet(tmp_path, capsys):
    pytest.importorskip("lightning")
    measured = example("lightning_resnet")(f"--steps 6 --samples 32 --logdir {tmp_path}".split())
    assert len(measured.layers) == 21
    assert measured.training.batches_known
    assert measured.metadata["batch norm"] == "statistics of the probe"
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "statistics of the probe" in capsys.readouterr().out


def test_transformer(capsys):
    comparison, attention = example("transformer")(["--heads", "2", "--steps", "50", "--neurons", "512"])
    (theory,) = comparison.deviations
    assert theory.layers[-1].forward.alignment[-1] > 0.95
    assert theory.losses.rms[-1] < 0.1
    assert attention.shape == (2,)
    assert attention.mean() > 0.35  # 1/4 when it begins
    shown = capsys.readouterr().out
    assert "attention to the marked token" in shown
    assert "|G| of attention.q: network (N=256) from" in shown
    starts = [run.layers[1].backward.equal_time[0].norm() for run in comparison.runs]
    assert starts[1] < 0.2 * starts[0]  # why movement, which divides by it, is so much larger in theory
