"""Records are read as they were written, and a reader survives whatever stands in their place."""

import json
import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torch_dmft.core.errors import InvalidInputError
from torch_dmft.tab.about import About
from torch_dmft.tab.log import HEAD, KERNELS, PAIRS, TEXT, RecordLog, frame_of
from torch_dmft.tab.reader import read, read_about


def test_numbers_come_back_also_those_that_json_does_not_know(tmp_path):
    about = About("a (N=1)", "network", ("0",), (0, 1), facts={"lr": 0.1}, verdict=("Fine.",))
    values = [{"loss": 0.123456789}, {"loss": np.nan, "late": np.inf}, {"loss": -np.inf, "late": 1e300}]
    with RecordLog(tmp_path, about) as log:
        for step, numbers in enumerate(values):
            log.record(step, 0.5 * step, {name: float(value) for name, value in numbers.items()})
    records = read(tmp_path)
    assert (records.about, records.problems, records.columns) == (about, (), ("loss", "late"))
    np.testing.assert_allclose(records.values[:, 0], [0.123456789, np.nan, -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(records.values[:, 1], [np.nan, np.inf, np.inf])
    np.testing.assert_array_equal(records.times, [0, 0.5, 1])
    for line in (tmp_path / TEXT).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_log_goes_on_where_it_stopped_and_forgets_what_comes_later(make_log, tmp_path):
    make_log(tmp_path, steps=range(6), start=0)
    about = make_log(tmp_path, steps=[4, 7], start=4)
    records = read(tmp_path)
    assert records.steps.tolist() == sorted(records.frames) == [0, 1, 2, 3, 4, 7]
    assert records.problems == ()
    for step in records.steps.tolist():
        for at, name in enumerate(about.kernels):
            assert set(records.kernel(name, step)) == {step + at}
    make_log(tmp_path, steps=[9], start=9, samples=4)  # of another probe
    assert read(tmp_path).steps.tolist() == [9]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.floats(0, 1), kernels=st.floats(0, 1))
def test_a_log_cut_anywhere_gives_what_stands_before_the_cut(make_log, tmp_path, text, kernels):
    make_log(tmp_path)
    for name, share in ((TEXT, text), (KERNELS, kernels)):
        os.truncate(tmp_path / name, int(share * (tmp_path / name).stat().st_size))
    records = read(tmp_path)
    steps = records.steps.tolist()
    assert steps == list(range(len(steps)))
    if records.about is None:
        assert records.problems
        return
    frame = frame_of(records.about).itemsize
    assert len(records.frames) == max(0, ((tmp_path / KERNELS).stat().st_size - HEAD.size) // frame)
    for step in records.frames:
        assert set(records.kernel("NTK/all", step)) == {step + 6}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_log_never_raises(make_log, tmp_path, data):
    make_log(tmp_path)
    for name in (TEXT, KERNELS):
        content = bytearray((tmp_path / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / name).write_bytes(content)
    records = read(tmp_path)
    for step in [*records.frames, 10**9]:
        records.kernel("Phi/0", step)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no records"),
        (b"step,loss\n0,1\n", "holds no records"),
        (pickle.dumps(os.getcwd), "holds no records"),
        (
            b'{"format": "torch_dmft records", "schema": 99}\n',
            "schema 99; this version of torch_dmft reads schemas up to 2",
        ),
        (b'{"format": "torch_dmft records", "schema": 1, "about": 3}\n', "must describe a run"),
        (b"[" * 100_000 + b"\n", "holds no records"),
        (
            b'{"format": "torch_dmft records", "schema": 1, "about": {"origin": "a", "kind": "theory", "weights": [], '
            b'"rows": [], "facts": {"lr": 1e999}}}\n',
            "does not describe a run of this schema",
        ),
    ],
    ids=["empty", "foreign", "pickle", "another schema", "no run", "deep", "a number JSON does not know"],
)
def test_other_files_are_told_from_records(tmp_path, content, told):
    (tmp_path / TEXT).write_bytes(content)
    records = read(tmp_path)
    assert records.about is None
    assert any(told in problem for problem in records.problems)


def test_a_folder_without_records_is_told(tmp_path):
    assert "cannot be read" in read(tmp_path / "nowhere").problems[0]


def test_sizes_are_checked_before_memory_is_taken(make_log, tmp_path):
    make_log(tmp_path)
    first, *rest = (tmp_path / TEXT).read_text().splitlines()
    opening = json.loads(first)
    opening["about"] |= {"rows": list(range(5000)), "labels": []}
    (tmp_path / TEXT).write_text("\n".join([json.dumps(opening), *rest, ""]))
    assert "at most 1024 samples" in read(tmp_path).problems[0]
    with pytest.raises(InvalidInputError, match="at most 4096 weights"):
        About.from_json({"origin": "", "kind": "theory", "weights": ["0"] * 5000, "rows": []})


def test_kernels_of_another_run_are_not_shown(make_log, tmp_path):
    make_log(tmp_path / "a")
    make_log(tmp_path / "b")
    (tmp_path / "a" / KERNELS).write_bytes((tmp_path / "b" / KERNELS).read_bytes())
    records = read(tmp_path / "a")
    assert records.frames == {}
    assert records.problems == ("The kernels are missing or not those of this run.",)


def test_two_writers_are_noticed_and_the_later_record_counts(make_log, tmp_path):
    make_log(tmp_path)
    with (tmp_path / TEXT).open("a") as file:
        file.write('{"step":2,"time":0,"values":[7.0]}\n{"step":5,"time":0,"values":[0.5]}\nnonsense\n')
    records = read(tmp_path)
    assert records.steps.tolist() == [0, 1, 2, 3, 5]
    assert records.values[2, 0] == 7
    assert any("two processes" in problem for problem in records.problems)
    assert any("1 line is damaged" in problem for problem in records.problems)


def test_a_writer_leaves_the_folder_to_a_later_one_and_the_log_tells(make_log, tmp_path):
    about = make_log(tmp_path, start=0)
    with RecordLog(tmp_path, about, start=0) as first:
        first.record(0, 0.0, {"loss": 1.0})
        make_log(tmp_path, start=0)
        with pytest.raises(FileExistsError, match="another run writes"):
            first.record(1, 0.0, {"loss": 2.0})
    records = read(tmp_path)
    assert records.steps.tolist() == [0, 1, 2, 3]
    assert "Two runs write" in records.problems[0]


def test_full_kernels_keep_evenly_spaced_steps(make_log, tmp_path):
    frame = 8 + 7 * 6 * 4
    make_log(tmp_path, steps=range(20), budget=4 * frame)
    kept = sorted(read(tmp_path).frames)
    assert len(kept) <= 4
    assert len(set(np.diff(kept))) == 1
    assert read(tmp_path).steps.tolist() == list(range(20))


def test_a_log_that_fails_leaves_the_earlier_one(make_log, tmp_path):
    make_log(tmp_path)
    about = read(tmp_path).about
    with pytest.raises(KeyError, match="Phi/0"), RecordLog(tmp_path, replace(about, origin="other")) as log:
        log.record(0, 0.0, {"loss": 1.0}, {})  # without its kernels
    assert read(tmp_path).steps.tolist() == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [TEXT, KERNELS]


def test_two_time_kernels_by_pair_and_their_mean(tmp_path):
    rng = np.random.default_rng(0)
    samples, times = 4, 3
    about = About("a", "theory", ("0",), tuple(range(samples)), times=(0, 5, 9), pairs=True)
    full = rng.normal(size=(2, samples, samples, times, times)).astype(np.float32)
    full = full + full.transpose(0, 2, 1, 4, 3)  # K[(t, mu), (s, alpha)] = K[(s, alpha), (t, mu)]
    upper = np.triu_indices(samples)
    means = np.einsum("kiits->kts", full) / samples
    with RecordLog(tmp_path, about) as log:
        log.record(0, 0.0, {})
        log.pairs(np.concatenate([mean[None], block[upper]]) for mean, block in zip(means, full, strict=True))
    records = read(tmp_path)
    for number, name in enumerate(about.two_time_kernels):
        np.testing.assert_allclose(records.two_time(name), means[number], rtol=1e-6)
        for i in range(samples):
            for j in range(samples):
                np.testing.assert_array_equal(records.two_time(name, (i, j)), full[number, i, j])
    assert records.two_time("Phi/0", (0, samples)) is None
    assert records.two_time("NTK/all") is None
    os.truncate(tmp_path / PAIRS, HEAD.size + 10)
    assert records.two_time("Phi/0") is None


def test_the_head_of_binary_files_is_what_it_was():
    """A change here needs another schema."""
    assert (HEAD.size, struct.calcsize("<8s16sII")) == (32, 32)


def test_records_of_an_earlier_schema_are_read(make_log, tmp_path):
    make_log(tmp_path)
    first, rest = (tmp_path / TEXT).read_text().split("\n", 1)
    opening = json.loads(first)
    assert opening["schema"] == 2
    opening["schema"] = 1
    del opening["about"]["ntk"]
    (tmp_path / TEXT).write_text(json.dumps(opening) + "\n" + rest)
    records = read(tmp_path)
    assert records.problems == ()
    assert records.about.ntk
    assert records.kernel("NTK/all", 3) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(make_log, tmp_path):
    """Opening one waits for somebody to write into it, and TensorBoard with it."""
    make_log(tmp_path / "sound")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / TEXT)
    (tmp_path / "sound" / KERNELS).unlink()
    os.mkfifo(tmp_path / "sound" / KERNELS)
    assert read_about(tmp_path / "pipe") is None
    assert read(tmp_path / "pipe").problems == (f"{TEXT} cannot be read: It is no regular file.",)
    assert read(tmp_path / "sound").problems == ("The kernels are missing or not those of this run.",)


@pytest.mark.parametrize("step", [10**30, -1, 2**53])
def test_a_step_that_no_run_has_is_damage_like_any_other(make_log, tmp_path, step):
    make_log(tmp_path)
    with (tmp_path / TEXT).open("a") as file:
        file.write(f'{{"step":{step},"time":0,"values":[7.0]}}\n')
    records = read(tmp_path)
    assert records.steps.tolist() == [0, 1, 2, 3]
    assert records.problems == ("1 line is damaged and left out.",)
