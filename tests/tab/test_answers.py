"""What the page is told, of the logs of a real training."""

import base64
import json

import numpy as np
import pytest
import torch

import torch_dmft as dmft
from torch_dmft.comparison import ntk_spectrum
from torch_dmft.report.choice import by_target
from torch_dmft.report.recorded import EDGE
from torch_dmft.tab import answers
from torch_dmft.tab.log import TEXT
from torch_dmft.tab.runs import Library


def numbers(array) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"])


@pytest.fixture
def library(trained) -> Library:
    return Library({"": trained.logdir})


def test_a_run_is_a_network_with_its_predictions(library, trained):
    (listed,) = answers.runs(library)["runs"]
    assert listed["name"] == trained.network
    assert listed["origins"] == [run.origin for run in trained.comparison.runs]
    assert listed["facts"]["seed"] == 1
    assert listed["facts"]["width"] == 16


def test_numbers_are_those_of_the_scalars(library, trained):
    whole = answers.run(library, trained.network)
    assert whole["problems"] == []
    network, theory, _ = whole["members"]
    table = dict(zip(theory["columns"], numbers(theory["values"]), strict=True))
    deviations = trained.comparison.deviations[0]
    np.testing.assert_allclose(table["NTK alignment/all"], deviations.ntk.alignment, rtol=1e-5)
    np.testing.assert_allclose(table["G relative error/1"], deviations.layers[1].backward.relative_error, rtol=1e-5)
    own = dict(zip(network["columns"], numbers(network["values"]), strict=True))
    np.testing.assert_allclose(own["loss"], trained.comparison.measured.losses, rtol=1e-5)
    np.testing.assert_allclose(own[EDGE], trained.comparison.measured.edge, rtol=1e-5)
    np.testing.assert_allclose(numbers(network["times"]), trained.comparison.measured.times, rtol=1e-5)
    assert " ".join(network["about"]["verdict"]) == trained.comparison.verdict
    assert network["about"]["plan"][1][:3] == ("0.weight", "input", "4")


def test_kernels_are_those_of_the_trajectories_sorted_by_label(library, trained):
    order = by_target(trained.comparison.targets, 7)
    labels = answers.run(library, trained.network)["members"][0]["about"]["labels"]
    assert list(labels) == sorted(labels)
    for which, kernel in (("Phi/1", "forward"), ("G/1", "backward"), ("NTK/1", "ntk")):
        answer = answers.kernel(library, trained.network, which, "4")
        for plain, run in zip(answer["kernels"], trained.comparison.runs, strict=True):
            expected = getattr(run.layers[1], kernel).per_sample().equal_time[4][order][:, order]
            got = np.zeros((7, 7), np.float32)
            got[np.triu_indices(7)] = numbers(plain)
            np.testing.assert_allclose(got, np.triu(expected), rtol=1e-5, atol=1e-6)
    whole = answers.kernel(library, trained.network, "NTK/all", "0")["kernels"][0]
    expected = trained.comparison.measured.ntk.per_sample().equal_time[0][order][:, order]
    np.testing.assert_allclose(numbers(whole), expected[np.triu_indices(7)], rtol=1e-5, atol=1e-6)
    assert answers.kernel(library, trained.network, "Phi/1", "99")["kernels"] == [None, None, None]


def test_the_spectrum_is_that_of_the_comparison(library, trained):
    for member, run in zip(answers.run(library, trained.network)["members"], trained.comparison.runs, strict=True):
        known = ntk_spectrum(run, trained.comparison.targets[run.train])
        np.testing.assert_allclose(numbers(member["eigenvalues"]).T, known.eigenvalues, rtol=1e-3, atol=1e-4)
        # Shares along single eigenvectors are not defined where eigenvalues coincide; their sum is.
        np.testing.assert_allclose(numbers(member["shares"]).sum(0), 1, rtol=1e-4)


def test_two_time_kernels_are_those_that_were_recorded(library, trained):
    network, order = trained.comparison.measured, by_target(trained.comparison.targets, 7)
    kernel = network.layers[1].backward.per_sample().values
    mean = answers.pair(library, trained.network, "G/1", "trace")
    assert mean["times"][0] == network.steps.tolist()
    np.testing.assert_allclose(numbers(mean["kernels"][0]), kernel.diagonal(dim1=1, dim2=3).mean(-1), rtol=1e-4)
    one = answers.pair(library, trained.network, "G/1", "5,2")["kernels"][0]
    np.testing.assert_allclose(numbers(one), kernel[:, order[5]][:, :, order[2]], rtol=1e-4, atol=1e-6)


def test_densities_integrate_to_what_the_range_holds(library, trained):
    network, theory, static = answers.run(library, trained.network)["members"]
    assert {(one["weight"], one["field"]) for one in network["densities"]} == {
        (weight, field) for weight in (0, 1) for field in ("preactivation", "gradient")
    }
    assert static["densities"] == []
    for one in [*network["densities"], *theory["densities"]]:
        heights = numbers(one["heights"])
        assert 0.9 < heights.sum() * (one["high"] - one["low"]) / len(heights) < 1.0001


def test_a_live_log_tells_what_it_can(trained):
    library = Library({"": trained.live})
    (listed,) = answers.runs(library)["runs"]
    network, theory = answers.run(library, listed["name"])["members"]
    assert network["steps"] == theory["steps"] == list(range(7))
    assert network["kernel_steps"] == list(range(7))
    assert network["about"]["verdict"] == ()
    assert network["about"]["plan"]
    assert "NTK alignment/all" in theory["columns"]


def test_every_answer_is_strict_json(library, trained):
    for question, parameters in (
        ("runs", {}),
        ("run", {"run": trained.network}),
        ("kernel", {"run": trained.network, "kernel": "Phi/0", "step": "0"}),
        ("pair", {"run": trained.network, "kernel": "Phi/0", "samples": "0,1"}),
    ):
        json.loads(json.dumps(answers.answer(library, question, parameters), allow_nan=False))


@pytest.mark.parametrize(
    ("question", "parameters", "told"),
    [
        ("secret", {}, "Unknown question 'secret'"),
        ("run", {}, "needs run"),
        ("run", {"run": "../a"}, "There is no run '../a'"),
        ("kernel", {"run": "RUN", "kernel": "Phi/0", "step": "x"}, "Not understood"),
        ("kernel", {"run": "RUN", "kernel": "Phi/0", "step": "1" * 5000}, "Not understood"),
        ("pair", {"run": "RUN", "kernel": "Phi/0", "samples": "1,2,3"}, "two numbers or 'trace'"),
    ],
)
def test_questions_without_an_answer_are_told(library, trained, question, parameters, told):
    asked = {name: trained.network if value == "RUN" else value for name, value in parameters.items()}
    with pytest.raises(answers.NoAnswerError, match=told):
        answers.answer(library, question, asked)


@pytest.mark.parametrize("name", ["a b", "ünï", 'quo"te', "per%20cent", "<b>", "a&b=c", "[x](y)"])
def test_odd_names_are_names(make_log, tmp_path, name):
    make_log(tmp_path / name)
    library = Library({"": tmp_path})
    (listed,) = answers.runs(library)["runs"]
    assert listed["name"] == name
    assert answers.run(library, name)["members"][0]["steps"] == [0, 1, 2, 3]


def test_a_file_is_read_again_when_it_has_changed_and_forgotten_when_it_is_gone(make_log, tmp_path, monkeypatch):
    monkeypatch.setattr("torch_dmft.tab.runs._FRESH", 0.0)
    library = Library({"": tmp_path})
    assert answers.runs(library) == {"runs": [], "problems": []}
    make_log(tmp_path / "a", start=0)
    before = answers.runs(library)["runs"][0]["stamp"]
    assert answers.run(library, "a")["members"][0]["steps"] == [0, 1, 2, 3]
    make_log(tmp_path / "a", start=4, steps=[4])
    assert answers.runs(library)["runs"][0]["stamp"] != before
    assert answers.run(library, "a")["members"][0]["steps"] == [0, 1, 2, 3, 4]
    (tmp_path / "a" / TEXT).unlink()
    assert answers.runs(library)["runs"] == []


def test_a_foreign_file_is_a_run_with_a_message(tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / TEXT).write_text("hello\n")
    library = Library({"": tmp_path})
    answer = answers.run(library, "odd")
    assert answer["members"][0]["about"] is None
    assert "holds no records" in answer["problems"][0]


def test_roots_have_names_and_links_do_not_loop(make_log, tmp_path):
    make_log(tmp_path / "one" / "x")
    (tmp_path / "one" / "loop").symlink_to(tmp_path / "one")
    make_log(tmp_path / "two")
    library = Library({"first": tmp_path / "one", "second": tmp_path / "two"})
    assert list(library.runs()) == ["first/x", "second"]


def test_neurons_and_the_edge_of_stability_are_there_while_the_network_trains(trained):
    """At records 0, 1, 2, 4, 8, ..., where theory has its neurons, and at the end; the same numbers as afterwards."""
    (listed,) = answers.runs(Library({"": trained.live}))["runs"]
    network, theory = answers.run(Library({"": trained.live}), listed["name"])["members"]
    measured, predicted = trained.comparison.runs[:2]
    for member, run, known in ((network, measured, [1, 2, 4]), (theory, predicted, range(1, 7))):
        edge = dict(zip(member["columns"], numbers(member["values"]), strict=True))[EDGE]
        assert {int(step) for step in np.isfinite(edge).nonzero()[0]} >= set(known)
        np.testing.assert_allclose(edge[list(known)], run.edge[list(known)], rtol=1e-5)
        steps = {density["step"] for density in member["densities"]}
        assert steps >= {0, 2, 4, 6}
        for density in member["densities"]:
            fields = run.layers[density["weight"]].fields
            if density["step"] not in fields.steps.tolist():
                continue
            kept = getattr(fields, density["field"])[fields.steps.tolist().index(density["step"])].flatten().numpy()
            ends = density["low"], density["high"]
            heights, edges = np.histogram(kept, 64, ends)
            expected = heights / (len(kept) * (edges[1] - edges[0]))
            # the ends are kept in seven digits: a neuron at the end of a bin may be in the next
            np.testing.assert_allclose(
                numbers(density["heights"]).cumsum(), expected.cumsum(), atol=2.1 * expected.max()
            )
            assert np.abs(numbers(density["heights"]) - expected).mean() < 0.02 * expected.mean()


def test_two_time_kernels_to_a_tolerance_are_shown_like_exact_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    problem = dmft.Problem.mlp(torch.randn(4, 3, generator=generator), torch.ones(4), lr=0.2, steps=5)
    solver = dmft.solvers.InfiniteWidth(64, 2)
    shown = {}
    for two_time in (True, 0.01):
        run = dmft.solve(problem, solver, two_time=two_time)
        dmft.compare(run, run).write_tensorboard(tmp_path / str(two_time))
        library = Library({"": tmp_path / str(two_time)})
        name = answers.runs(library)["runs"][0]["name"]
        shown[two_time] = [
            numbers(answers.pair(library, name, "G/1", which)["kernels"][0]) for which in ("trace", "1,2")
        ]
    for exact, few in zip(shown[True], shown[0.01], strict=True):
        np.testing.assert_allclose(few, exact, rtol=0.02, atol=0.02 * np.abs(exact).max())
        assert exact.shape == (6, 6)
