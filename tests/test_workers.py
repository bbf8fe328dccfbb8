"""Runs side by side: every job is done once, the first error is told, and what two of them share is made by one."""

import threading
import time

import pytest
import torch

from mpm_lite import UserError
from mpm_lite.claims import ledger
from mpm_lite.cli import main
from mpm_lite.core import runtime, store
from mpm_lite.core.store import write_atomic


@pytest.mark.parametrize("many", [1, 2])
def test_every_job_is_done_and_told_of(many, tmp_path):
    jobs = {name: (write_atomic, (tmp_path / name, name.encode())) for name in "abc"}
    said = []
    runtime.run_jobs(jobs, many, said.append)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in "abc"}
    assert len(said) == 3 and all(line.startswith(f"{k} of 3") for k, line in enumerate(said, 1))
    assert {line[-1] for line in said} == set("abc")


@pytest.mark.parametrize("many", [1, 2])
def test_an_error_in_a_process_is_the_sentence_it_was(many):
    with pytest.raises(UserError, match="Unknown claim 'C77'"):
        runtime.run_jobs({"a": (ledger.find_claim, ("C77",))}, many)
    with pytest.raises(UserError, match="take at least 1"):
        runtime.run_jobs({}, 0)


def test_what_two_share_is_made_by_one(tmp_path):
    made, got = [], []

    def learn(work):
        made.append(work)
        time.sleep(0.3)
        return {"w": torch.arange(3.0)}

    both = [
        threading.Thread(target=lambda: got.append(store.keep_weights(tmp_path / "a.safetensors", learn))) for _ in "ab"
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(made) == 1 and len(got) == 2 and all(torch.equal(of["w"], torch.arange(3.0)) for of in got)


def test_who_fails_lets_go(tmp_path):
    def broken(work):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        store.keep_weights(tmp_path / "a.safetensors", broken)
    assert store.keep_weights(tmp_path / "a.safetensors", lambda work: {"w": torch.ones(1)})["w"] == 1


def test_the_command_line_refuses_no_worker(tmp_path, capsys):
    assert main(["claims", "run", "C1a", "--workers", "0", "--out", str(tmp_path)]) == 2
    assert "take at least 1" in capsys.readouterr().err
