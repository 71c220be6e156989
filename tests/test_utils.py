"""Errors in one line, the command line, whole files, the log of a run."""
import argparse
import json
import os
import signal
import sys

import pytest
import scripts

from command_line import Parser, choices, filled, number, run
from utils import Interrupted, RunLog, UserError, atomic_path, write_json


def end_with(error, capsys):
    """Status and stderr of a script whose main raises an error."""
    def main():
        raise error
    with scripts.as_script(["script.py"], ".", {}), pytest.raises(SystemExit) as ended:
        run(main)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error, status, line", [
    (UserError("--flag: of\ntwo lines\x1b[2J"), 2, "script.py: error: --flag: of two lines\\x1b[2J\n"),
    (FileNotFoundError(2, "No such file or directory", "a.jpg"), 2,
     "script.py: error: a.jpg: No such file or directory; free space, or mend the path or its permissions\n"),
    (MemoryError(), 2, "script.py: error: out of memory (MemoryError); free some, or use a smaller "
     "--batch-size or --test-batch, fewer --workers, or --data-device cpu\n"),
    (RuntimeError("could not create a primitive"), 2, None),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory"), 2, None),
    (Interrupted(15, "stopped"), 143, "script.py: stopped\n")])
def test_what_a_user_can_cause_is_one_line(error, status, line, capsys):
    code, said = end_with(error, capsys)
    assert code == status and said.count("\n") == 1
    assert said == line or line is None and "out of memory (" in said


def test_an_error_of_ours_is_a_traceback(capsys):
    with pytest.raises(RuntimeError, match="ours"):
        end_with(RuntimeError("ours"), capsys)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_ends_a_script_that_does_not_ignore_it(name, capsys):
    signum = getattr(signal, name)
    for ignored, status, said in ((False, 128 + signum, f"script.py: ended by {name}\n"), (True, 0, "")):
        with scripts.as_script(["script.py"], ".", {}), pytest.raises(SystemExit) as ended:
            if ignored:  # as nohup has it for SIGHUP
                signal.signal(signum, signal.SIG_IGN)
            run(lambda: os.kill(os.getpid(), signum))
        assert (ended.value.code or 0) == status and capsys.readouterr().err == said


def test_a_reader_that_has_gone(tmp_path):
    code = (f"import sys\nsys.path.insert(0, {str(scripts.ROOT)!r})\n"
            "import command_line\ncommand_line.run(lambda: print('x' * 99999))")
    script = scripts.start(["-c", code], tmp_path)
    script.stdout.close()
    assert script.wait(60) == 1 and not script.stderr.read()


def test_dashes_and_underscores_are_one(capsys):
    parser = Parser(prog="x")
    parser.add_argument("--num_pos", type=int)
    parser.add_argument("--data-path")
    for words in (["--num_pos", "2", "--data-path=a_b"], ["--num-pos=2", "--data_path", "a_b"]):
        assert parser.parse_args(words) == argparse.Namespace(num_pos=2, data_path="a_b")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--num", "2"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "x: error: unrecognized arguments: --num 2 (see x --help)\n"


@pytest.mark.parametrize("kind, text, value", [
    (number(1), "7", 7), (number(1), "0", None), (number(1), "1.5", None), (number(1, 5), "6", None),
    (number(0, kind=float), "1e-3", 1e-3), (number(0, kind=float), "nan", None),
    (number(0, kind=float), "inf", None), (number(-1, 1, float), "-1", -1), (filled, "a", "a"),
    (filled, "", None), (choices("ab"), "b,a", "b,a"), (choices("ab"), "a,c", None)])
def test_values_that_are_taken_and_refused(kind, text, value):
    if value is not None:
        assert kind(text) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError, match="found"):
            kind(text)


def test_a_file_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "no/b.json") as temporary:
        temporary.write_text("")
    assert error.value.filename == str(tmp_path / "no/b.json")


def test_the_log_goes_on_where_the_checkpoint_is(tmp_path):
    for first, epochs in ((0, (0, 1, 2)), (2, (2, 3))):
        log = RunLog(tmp_path / "log", tmp_path / "board", "run", first)
        for epoch in epochs:
            log(f"epoch {epoch}")
            log.epoch({"epoch": epoch, "loss": first})
        with open(tmp_path / "log/run.jsonl", "a") as file:
            file.write('{"epoch": 9, "lo')  # cut short by a kill
    RunLog(tmp_path / "log", tmp_path / "board", "run", 4)
    lines = map(json.loads, (tmp_path / "log/run.jsonl").read_text().splitlines())
    assert [(line["epoch"], line["loss"]) for line in lines] == [(0, 0), (1, 0), (2, 2), (3, 2)]
    assert (tmp_path / "log/run.txt").read_text().split("\n")[2:4] == ["epoch 2", "epoch 2"]
    assert list((tmp_path / "board/run").iterdir())
    RunLog(tmp_path / "nowhere", tmp_path / "nowhere", "run", silent=True)("nothing")
    assert not (tmp_path / "nowhere").exists()


def test_a_tensorboard_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="TensorBoard does not start .*; run: pip install --upgrade"):
        RunLog(tmp_path, tmp_path, "run")
