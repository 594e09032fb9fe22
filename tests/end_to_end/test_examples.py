"""Every example runs, explains itself, and shows what it says."""

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torch_dmft.comparison import movement

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Callable:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_help_explains_it(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        example(name)(["--help"])
    assert exit_.value.code == 0
    assert f"python examples/{name}.py" in capsys.readouterr().out


PNG = b"\x89PNG"


def logs(folder: Path) -> list[Path]:
    return [*folder.rglob("events.out.tfevents.*")]


def test_quick(tmp_path, capsys):
    arguments = f"--width 128 --steps 30 --neurons 512 --logdir {tmp_path}"
    comparison = example("quick")(arguments.split())
    theory, static, same_width = comparison.deviations
    assert same_width.consistency.is_decidable
    assert theory.layers[-1].forward.relative_error[-1] < 0.5 * static.layers[-1].forward.relative_error[-1]
    assert "nearest prediction first: theory" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "quick.png").read_bytes().startswith(PNG)
    assert logs(tmp_path)


def test_quick_is_a_script(tmp_path):
    arguments = ["--width", "16", "--steps", "5", "--neurons", "256", "--logdir", str(tmp_path)]
    shown = subprocess.run(
        [sys.executable, EXAMPLES / "quick.py", *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Everything else: comparison.details()" in " ".join(shown.stdout.split())
    assert shown.stderr == ""


def test_lr_transfer(tmp_path, capsys):
    sweeps = example("lr_transfer")(f"--widths 64,1024 --steps 16 --seeds 2 --check --logdir {tmp_path}".split())
    assert sweeps["mean_field"].moves()[0] <= 2
    assert sweeps["standard"].moves()[0] >= 4
    assert all(sweep.at_the_edge() == [] for sweep in sweeps.values())
    assert (tmp_path / "mlp-sgd.png").read_bytes().startswith(PNG)
    known = json.loads((tmp_path / "mlp-sgd.json").read_text())
    assert known["steps"] == 16
    assert list(known["losses"]["standard"]) == ["64", "1024"]
    shown = capsys.readouterr().out
    assert "stable" in shown
    assert "the best rate of mlp with sgd moves by a factor" in shown


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "gpt2", "vit"])
def test_best_rates_stay_within_a_factor_of_two(model, optimizer, tmp_path):
    size = "--widths 64,512 --steps 32" if model in ("gpt2", "vit") else "--widths 64,1024 --steps 24"
    arguments = f"--model {model} --optimizer {optimizer} {size} --logdir {tmp_path}"
    sweeps = example("lr_transfer")(arguments.split())
    assert sweeps["mean_field"].moves()[0] <= 2
    assert sweeps["standard"].moves()[0] >= 4


@pytest.mark.parametrize("model", ["cnn", "gpt2", "vit"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lr_transfer_sweeps_every_model(model, optimizer, tmp_path):
    if model in ("gpt2", "vit"):
        pytest.importorskip("transformers")
    arguments = f"--model {model} --optimizer {optimizer} --widths 32,48 --steps 2 --seeds 1 --logdir {tmp_path}"
    for sweep in example("lr_transfer")(arguments.split()).values():
        for width in (32, 48):
            best, means = sweep.power(width), sweep.means(width)
            assert {best - 2, best - 1, best + 1, best + 2} <= {*means} | set(range(11, 13)) | set(range(-28, -26))
            assert means[best] == min(means.values()) < float("inf")


def test_the_best_rate_is_placed_by_a_parabola():
    sweep = runpy.run_path(str(EXAMPLES / "lr_transfer.py"))["Sweep"]
    near = {power: [(power + 2.25) ** 2] for power in range(-5, 1)}
    far = {power: [(power + 3.0) ** 2] for power in range(-5, -1)} | {-2: [float("inf")]}
    edge = {-1: [1.0], -2: [0.5]}
    found = sweep({64: near, 128: far, 256: edge})
    assert found.power(64) == -2
    assert found.exponent(64) == pytest.approx(-2.25)
    assert found.exponent(128) == -3  # its neighbour diverged
    assert found.moves() == pytest.approx((2.0, 2.0))
    assert found.at_the_edge() == [256]


def test_richness(tmp_path):
    found = example("richness")(f"--gammas 0.1,1 --width 256 --steps 30 --neurons 512 --logdir {tmp_path}".split())
    for (lazy, lazy_aligned), (rich, rich_aligned) in found.values():
        assert lazy < 0.15
        assert rich > 0.5
        assert rich_aligned > lazy_aligned
    (_, network), (_, theory) = found["network"], found["theory"]
    assert network == pytest.approx(theory, rel=0.25)
    assert (tmp_path / "richness.png").read_bytes().startswith(PNG)
    assert logs(tmp_path / "gamma0=0.1")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon(tmp_path):
    """Network and theory are those of one optimizer, and Adam and Muon move features further."""
    found = example("muon")(f"--width 128 --steps 16 --neurons 512 --logdir {tmp_path}".split())
    moved = {name: [movement(run.layers[-1].forward)[-1].item() for run in runs] for name, runs in found.items()}
    for name, (network, theory) in moved.items():
        assert network == pytest.approx(theory, rel=0.25), name
    assert min(moved["Muon"][1], moved["Adam"][1]) > moved["SGD"][1]
    assert (tmp_path / "muon.png").read_bytes().startswith(PNG)


def test_learning_rules(tmp_path):
    """Network and theory are those of one rule, and rules differ."""
    found = example("learning_rules")(f"--width 256 --steps 20 --neurons 512 --logdir {tmp_path}".split())
    moved = {name: [movement(run.layers[-1].forward)[-1].item() for run in runs] for name, runs in found.items()}
    for name, (network, theory) in moved.items():
        assert network == pytest.approx(theory, rel=0.3), name
    theories = {name: theory for name, (_, theory) in moved.items()}
    assert theories["gradient descent"] > 1.3 * max(theories[name] for name in theories if name != "gradient descent")
    assert 3 * theories["Hebb"] < min(theories[name] for name in theories if name != "Hebb")
    assert (tmp_path / "learning_rules.png").read_bytes().startswith(PNG)


def test_scatter(tmp_path):
    """The spread of networks is what their width makes of one run at infinite width."""
    found = example("scatter")(
        f"--widths 64 128 --networks 60 --samples 4 --steps 8 --neurons 300 --logdir {tmp_path}".split()
    )
    for width, spreads in found.spreads.items():
        for wide, agrees in ((width, True), (4 * width, False)):
            z = torch.log(spreads / found.predicted(wide)) * (2 * 59) ** 0.5
            assert (float(z.abs().max()) < 5) == agrees, (width, z)
    assert (tmp_path / "scatter.png").read_bytes().startswith(PNG)


def test_real_run(tmp_path, capsys):
    """Momentum, decay, warmup, cosine and the very batches: every kernel is within what the width explains."""
    comparison = example("real_run")(f"--width 256 --steps 90 --pairs 4 --logdir {tmp_path}".split())
    (theory,) = comparison.deviations
    for layer in theory.layers:
        for kernel in (layer.forward, layer.backward):
            bar = 5 * kernel.relative_error_stderr[-1].nan_to_num(0.0)
            assert kernel.relative_error[-1] <= 7 / 256**0.5 + bar
    assert theory.losses.rms[-1] < 0.1 * comparison.measured.losses[0]
    training = comparison.measured.training
    assert {"momentum", "decay", "schedule", "batches", "uniform starts"} == set(training.traits)
    assert training.notes == ()
    assert training.batches_known
    assert "The theory took" in capsys.readouterr().out
    assert (tmp_path / "real_run.png").read_bytes().startswith(PNG)


def test_cnns_of_two_widths_agree_at_fixed_gamma0_and_nowhere_else(tmp_path, capsys):
    """In units of standard errors: about 1 between widths, and far more between gammas."""
    scope = runpy.run_path(str(EXAMPLES / "cnn_widths.py"))
    runs = scope["main"](f"--widths 24,48 --gammas 0.5,2 --steps 20 --samples 4 --seeds 6 --logdir {tmp_path}".split())
    for of in (scope["losses"], scope["last_kernels"]):
        for gamma0 in (0.5, 2.0):
            assert scope["distance"](of(runs[gamma0, 24]), of(runs[gamma0, 48])) < 3
        for width in (24, 48):
            assert scope["distance"](of(runs[0.5, width]), of(runs[2.0, width])) > 5
    assert "Apart by so many standard errors" in capsys.readouterr().out
    assert (tmp_path / "cnn_widths.png").read_bytes().startswith(PNG)
    assert logs(tmp_path / "gamma0=2, 24 channels")


def test_the_distance_of_equal_networks_is_one():
    distance = runpy.run_path(str(EXAMPLES / "cnn_widths.py"))["distance"]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(6, 500, generator=generator) for _ in range(2))
    assert distance(one, other) == pytest.approx(1, abs=0.15)
    assert distance(one, other + 1) > 1.5


@pytest.mark.filterwarnings("ignore")
def test_gpt2_trainer(tmp_path, capsys):
    pytest.importorskip("transformers")
    measured = example("gpt2_trainer")(f"--steps 12 --features 32 --blocks 1 --logdir {tmp_path}".split())
    assert [layer.name for layer in measured.layers][-1] == "lm_head"
    assert measured.steps.tolist() == list(range(13))
    assert measured.training.optimizer == "AdamW"
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "The features that move most" in capsys.readouterr().out
    assert (tmp_path / "gpt2.png").read_bytes().startswith(PNG)


@pytest.mark.filterwarnings("ignore")
def test_lightning_resnet(tmp_path, capsys):
    pytest.importorskip("lightning")
    measured = example("lightning_resnet")(f"--steps 6 --samples 32 --logdir {tmp_path}".split())
    assert len(measured.layers) == 21
    assert measured.training.batches_known
    assert measured.metadata["batch norm"] == "statistics of the probe"
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "statistics of the probe" in capsys.readouterr().out
    assert (tmp_path / "resnet.png").read_bytes().startswith(PNG)


def test_nanogpt(tmp_path, capsys):
    arguments = (
        f"--widths 32,48,64 --sweep 32,48 --steps 30 --sweep-steps 10 --processes 1 --seeds 1 --logdir {tmp_path}"
    )
    found = example("nanogpt")(arguments.split())
    transfer, plain = found["transfer"], found["plain"]
    assert transfer.values == plain.values == (32, 48)
    mean_field, others, own = found["curves"].values()
    ends = {label: sum(losses[-8:]) / 8 for several in (mean_field, others, own) for label, losses in several.items()}
    assert all(end < 0.9 * math.log(61) for end in ends.values())
    widths = [sum(losses[-8:]) / 8 for losses in mean_field.values()]
    assert max(widths) - min(widths) < 0.15  # one rate for all of them
    shown = capsys.readouterr().out
    assert "scores" in shown
    assert "The network of width 64 writes" in shown
    for name in ("nanogpt.png", "transfer.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)
    assert len((tmp_path / "mean_field.jsonl").read_text().splitlines()) == 1 + len(transfer.runs)


def test_transformer(tmp_path, capsys):
    arguments = f"--heads 2 --steps 50 --neurons 512 --logdir {tmp_path}"
    comparison, attention = example("transformer")(arguments.split())
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
    assert (tmp_path / "transformer.png").read_bytes().startswith(PNG)
    assert logs(tmp_path)


def transfer_row(file: Path, sweep: Callable) -> str:
    """What the page of the docs says of one sweep."""
    known = json.loads(file.read_text())
    cells = [known["model"], known["optimizer"]]
    for scheme in ("mean_field", "standard"):
        losses = {
            int(width): {int(p): row for p, row in rows.items()} for width, rows in known["losses"][scheme].items()
        }
        one = sweep(losses)
        assert one.at_the_edge() == []
        best = [f"{2 ** one.exponent(width):.2g}" for width in (min(losses), max(losses))]
        by_grid, by_parabola = one.moves()
        cells += [" → ".join(best), f"{by_grid:g}", f"{by_parabola:.2g}"]
    return f"| {' | '.join(cells)} |"


def test_the_page_on_transfer_says_what_was_measured():
    docs = EXAMPLES.parent / "docs"
    sweep = runpy.run_path(str(EXAMPLES / "lr_transfer.py"))["Sweep"]
    rows = [transfer_row(file, sweep) for file in sorted((docs / "assets" / "transfer").glob("*.json"))]
    page = (docs / "transfer.md").read_text()
    assert [row for row in rows if row not in page] == []
    assert len(rows) == page.count("| sgd |") + page.count("| adamw |")


def test_infinite_digits(tmp_path, capsys):
    arguments = f"--samples 40,160 --gammas 1 --draws 2 --neurons 256 --epochs 20 --width 64 --logdir {tmp_path}"
    found = example("infinite_digits")(arguments.split())
    assert len(found) == 4
    for name, (few, many) in found.items():
        if name.startswith("N = inf"):
            # Of the lazy one the noise of the start, 1 / (gamma0 sqrt S), is 1.3 at this number of neurons.
            assert many[0] < few[0] < (0.95 if "lazy" in name else 0.6)
            assert many[0] < 0.25
    assert "test error" in capsys.readouterr().out
    assert (tmp_path / "infinite_digits.png").read_bytes().startswith(PNG)
