"""`train --curve`: a run for each nested part of the rows, each as any other run."""

import json

import pytest

from tests.faults.conftest import Workshop
from tunesmith.errors import ExitCode
from tunesmith.files import read_json, read_jsonl

SETS = ["trainer.num_train_epochs=1", "trainer.warmup_steps=0", "dev.rows=99"]
CUT = ["curate.split.shares={train: 0.24, dev: 0.05, gate: 0.61, confirm: 0.1}"]


def test_a_run_for_each_size_gone_on_with_where_it_was_killed_and_skipped_when_done(
    workshop: Workshop,
) -> None:
    shop, root = workshop, workshop.root
    shop.forget()
    pairs = [part for text in (*CUT, *SETS) for part in ("--set", text)]

    refused = shop("train", "smoke", "--curve", *pairs)
    assert refused.code == ExitCode.USER
    assert "`tunesmith curate smoke --curve` writes them" in " ".join(refused.said.split())
    cut = shop("curate", "smoke", "--curve", "--recut", *pairs)
    assert cut.code == ExitCode.DONE, cut.said
    stopped = shop("train", "smoke", "--curve", *pairs, fault={"at": "step", "call": 7, "signals": ["KILL"]})
    assert stopped.code == -9, stopped.said
    done = shop("train", "smoke", "--curve", *pairs)
    assert done.code == ExitCode.DONE, done.said
    assert done.said.count("unchanged: runs/") >= 1
    (path,) = (root / "runs").glob("*/curve.json")
    told = read_json(path)
    sizes = [point["rows"] for point in told["points"]]
    assert sizes == [round(sizes[-1] / part) for part in (8, 4, 2, 1)]
    assert len({point["run"] for point in told["points"]}) == 4
    assert [point["steps"] for point in told["points"]] == [-(-size // 8) for size in sizes]
    assert told["equal"].startswith("the recipe's 1 epochs for every size")
    assert "without the incumbent" in done.said

    for point in told["points"]:
        run = root / point["run"]
        about = read_json(run / "dev" / "adapter.json")
        assert about["rows"] == told["dev_rows"]
        assert about["means"]["exact_match"] == point["score"]
        # The last look of training answered the same rows, by the same renderer, settings and scorer.
        look = read_json(run / "choice.json")["looks"][-1]
        assert look["dev_rows"] == about["rows"]
        assert {name: look[f"dev_{name}"] for name in about["means"]} == {
            name: round(mean, 6) for name, mean in about["means"].items()
        }
        trained = {json.loads(line)["id"] for line in (run / "dev" / "adapter.jsonl").read_text().splitlines()}
        assert trained == {row["id"] for row in read_jsonl(root / "data" / "smoke" / "dev.jsonl")}
    again = shop("train", "smoke", "--curve", *pairs)
    assert again.code == ExitCode.DONE
    assert "training  " not in again.said
    assert again.said.count("unchanged: ") == 10
    # The incumbent is drawn once there is one.
    assert shop("baseline", "smoke", *pairs).code == ExitCode.DONE
    drawn = shop("train", "smoke", "--curve", *pairs)
    selection = read_json(path.with_name("selection.json"))
    assert f"{selection['incumbent']}, the incumbent" in drawn.said
    best = read_json(path)["incumbent"]
    assert best["arm"] == selection["incumbent"]
    assert best["score"] == pytest.approx(max(selection["dev_means"].values()))
    # The whole is the recipe's own run.
    whole = shop("train", "smoke", *pairs)
    assert "unchanged: " in whole.said
    assert len(list((root / "runs").glob("smoke-*"))) == 4
    assert shop("train", "smoke", "--curve", "--allow-drift", *pairs).code == ExitCode.USER
