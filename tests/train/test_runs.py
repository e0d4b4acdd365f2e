"""Run directories: what is written, continued, read back and refused."""

import json
import os
from itertools import combinations

import pytest
from small_runs import quick

from sdplip.cli._verify import certified
from sdplip.errors import InvalidInput, NotConverged
from sdplip.train import load
from sdplip.train.directory import GUARD, LOCK, prepare
from sdplip.train.runs import _gathered, compare, run


@pytest.fixture(scope="module")
def splits():
    return load("digits")


def test_a_run_leaves_its_files_and_is_read_back(splits, tmp_path):
    out = tmp_path / "sll"
    first = run(quick("sll", splits), splits, out)
    assert sorted(p.name for p in out.iterdir() if p.name != GUARD) == [
        "certificate-2.json",
        "config.json",
        "metrics.json",
        "model.safetensors",
    ]
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    again = run(quick("sll", splits), splits, out)
    assert again.already and again.rows == first.rows
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    assert not run(quick("sll", splits), splits, out, force=True).already


def test_every_certificate_of_a_run_is_proved_by_its_model(splits, tmp_path):
    changes = {"radii": (0.3, 0.5), "linf_radii": (0.015, 0.03), "pair_units": 8, "lr": 2e-2}
    config = quick("nemon", splits, local_images=18, **changes)
    norms = ("2", "inf")
    # Of an earlier measurement that was cut short.
    (tmp_path / "pairs").mkdir()
    tmp_path.joinpath("config.json").write_text(json.dumps(config.to_dict()))
    tmp_path.joinpath("pairs", "2-3-99.json").write_text("stale")
    rows = run(config, splits, tmp_path).rows
    pairs = {f"{norm}-{i}-{j}.json" for norm in norms for i, j in combinations(range(10), 2)}
    assert {p.name for p in (tmp_path / "pairs").iterdir()} == pairs
    _, labels = splits.test
    local = sorted((tmp_path / "local").iterdir())
    assert {p.name.split("-")[0] for p in local} == set(norms)
    for path in [*local, *(tmp_path / "pairs" / f"{norm}-0-1.json" for norm in norms)]:
        norm, *image, i, j = path.stem.split("-")
        found, _ = certified(path, tmp_path)
        assert found["holds"] and found["norm"] == norm
        assert found["classes"] == [int(i), int(j)]
        assert (found["region"] is None) == (not image)
        assert not image or labels[int(image[0])] == int(i)
    other = run(quick("nemon", splits, seed=1), splits, tmp_path / "other")
    assert not certified(local[0], other.path)[0]["holds"]
    # What a worker elsewhere sends is all of it.
    _, files = _gathered(splits, config, tmp_path, "cpu", True, "", None, "", threads=1)
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert set(files) == {p for p in there if not p.startswith("other") and p != GUARD}
    assert sorted(k for row in rows for k in row.certificates) == sorted(
        k for k in files if k.startswith(("pairs", "local", "certificate"))
    )
    prepare(config, tmp_path, force=True)
    assert {p.name for p in tmp_path.iterdir()} == {"other", GUARD}


def test_another_configuration_is_refused_with_the_difference(splits, tmp_path):
    run(quick("sll", splits), splits, tmp_path / "a")
    with pytest.raises(InvalidInput, match=r"train\.lr: 0\.005 there, 0\.1 asked"):
        run(quick("sll", splits, lr=0.1), splits, tmp_path / "a")
    with pytest.raises(InvalidInput, match=r"model\.width: 8 there, 9 asked"):
        run(quick("sll", splits, width=9), splits, tmp_path / "a")


def test_an_interrupted_run_continues(splits, tmp_path):
    config, out = quick("aol", splits, epochs=3), tmp_path / "aol"

    def interrupt(name, config, epoch, metrics):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, splits, out, on_epoch=interrupt)
    assert not (out / LOCK).exists()
    with pytest.raises(InvalidInput, match="interrupted"):
        run(config, splits, out, resume=False)
    seen = []
    run(config, splits, out, on_epoch=lambda name, config, epoch, metrics: seen.append(epoch))
    assert seen == [2, 3]
    history = json.loads((out / "metrics.json").read_text())["history"]
    assert len(history) == 3
    run(config, splits, tmp_path / "straight")
    assert json.loads((tmp_path / "straight" / "metrics.json").read_text())["history"] == history


def test_foreign_directories_are_left_alone(splits, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(InvalidInput, match="holds no run"):
            run(quick("sll", splits), splits, tmp_path, force=force)
    with pytest.raises(InvalidInput, match="is a file"):
        run(quick("sll", splits), splits, tmp_path / "thesis.tex")
    (tmp_path / "config.json").write_text('{"editor": "vi"}')
    with pytest.raises(InvalidInput, match="not that of a run"):
        run(quick("sll", splits), splits, tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_force_removes_only_what_a_run_wrote(splits, tmp_path):
    run(quick("sll", splits), splits, tmp_path)
    (tmp_path / "notes.txt").write_text("keep")
    assert not run(quick("sll", splits, lr=0.1), splits, tmp_path, force=True).already
    assert (tmp_path / "notes.txt").read_text() == "keep"


def test_a_directory_in_use_is_refused_and_a_dead_lock_taken_over(splits, tmp_path):
    # Our own number, which a container may give to the next process: it holds nothing any more.
    tmp_path.joinpath(LOCK).write_text(str(os.getpid()))
    seen = []

    def again(name, config, epoch, metrics):
        with pytest.raises(InvalidInput, match=f"in use by process {os.getpid()}"):
            run(config, splits, tmp_path)
        seen.append(epoch)

    run(quick("sll", splits), splits, tmp_path, on_epoch=again)
    assert seen == [1, 2] and not tmp_path.joinpath(LOCK).exists()


def test_what_killed_processes_left_is_in_nobodys_way(splits, tmp_path):
    config = quick("sll", splits)
    (tmp_path / ".config.json.12.tmp.json").write_text("{")
    run(config, splits, tmp_path)
    (tmp_path / "last.ckpt").write_text("killed before it was removed")
    (tmp_path / "tensorboard").mkdir()
    assert run(config, splits, tmp_path).already and not (tmp_path / "last.ckpt").exists()
    run(config, splits, tmp_path, force=True)
    left = {p.name for p in tmp_path.iterdir()}
    assert "tensorboard" not in left and ".config.json.12.tmp.json" not in left


@pytest.mark.parametrize("text", ['{"rows": 3}', '{"format": "sdplip-run-9"}', "[]", "{"])
def test_damaged_metrics_are_named(splits, tmp_path, text):
    run(quick("aol", splits), splits, tmp_path / "a")
    (tmp_path / "a" / "metrics.json").write_text(text)
    with pytest.raises(InvalidInput, match="a"):
        run(quick("aol", splits), splits, tmp_path / "a")


def test_compare_checks_every_directory_before_training_any(splits, tmp_path):
    run(quick("sll", splits, lr=0.1), splits, tmp_path / "sll")
    with pytest.raises(InvalidInput, match="another configuration"):
        compare([quick("aol", splits), quick("sll", splits)], splits, tmp_path)
    assert not (tmp_path / "aol").exists()


def test_compare_writes_rows_and_pictures(splits, tmp_path):
    configs = [quick(name, splits) for name in ("aol", "nemon", "unconstrained")]
    result = compare(configs, splits, tmp_path)
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert [row["layer"] for row in stored["rows"]] == ["aol", "nemon", "nemon", "unconstrained"]
    assert stored["violations"] == result["violations"] == []
    assert (tmp_path / "accuracy.png").is_file() and (tmp_path / "lipschitz.svg").is_file()


def test_a_comparison_goes_on_without_a_run_that_diverges(splits, tmp_path):
    wild = quick("unconstrained", splits, lr=1e30)
    result = compare({"unconstrained": wild, "aol": quick("aol", splits)}, splits, tmp_path / "two")
    assert {row["layer"] for row in result["rows"]} == {"aol"}
    assert (
        result["failed"].keys() == {"unconstrained"} and "nan" in result["failed"]["unconstrained"]
    )
    assert json.loads((tmp_path / "two" / "compare.json").read_text())["failed"] == result["failed"]
    with pytest.raises(NotConverged, match="unconstrained: "):
        compare({"unconstrained": wild}, splits, tmp_path / "one")
