"""The command line: options, files beside the text, what goes where, exit codes; and that nothing heavy is imported."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llava_trainer.cli import main

COMMAND = (
    "deepspeed {launcher} llava/train/train_mem.py --model_name_or_path liuhaotian/llava-v1.5-7b --data_path d/a.json"
)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "run.sh"
    file.write_text(COMMAND.format(launcher="--num_gpus 8") + " --deepspeed mine.json --save_steps 50000 --lora_r $R\n")
    return file


def test_a_manifest_on_standard_output_and_warnings_on_standard_error(script: Path, capsys: pytest.CaptureFixture):
    (script.parent / "mine.json").write_text('{"zero_optimization": {"stage": 3}}')
    assert (
        main(["translate", str(script), "--set", "R=8", "--name", "mine", "--nodes", "2", "--dataset-claim", "d"]) == 0
    )
    out, err = capsys.readouterr()
    manifest = yaml.safe_load(out)
    assert manifest["metadata"]["name"] == "mine"
    assert manifest["spec"]["workers"] == {"replicas": 2, "gpus": 8}
    assert manifest["spec"]["dataset"]["source"] == "pvc://d/"
    assert manifest["spec"]["training"]["zero"] == {"stage": 3}, "read from the file beside the script"
    assert (
        "warning: spec.training.checkpoint.everySteps: --save_steps 50000: no checkpoint would ever be written" in err
    )


def test_the_text_may_come_from_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "stdin", io.StringIO(COMMAND.format(launcher="")))
    assert main(["translate", "-", "--gpus", "0", "--literal"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["spec"]["workers"]["gpus"] == 0


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", 1, "the text is empty"),
        ("echo hello", 1, "no training command found"),
        (COMMAND.format(launcher=""), 3, "say it with --gpus N"),
        (COMMAND.format(launcher="--hostfile none"), 3, "--hostfile none cannot be read here"),
        (COMMAND.format(launcher="--num_gpus 8") + " --lora_r $R", 3, "say it with --set R=VALUE"),
    ],
)
def test_what_is_wrong_ends_with_its_code_and_nothing_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str, code: int, message: str
):
    (tmp_path / "text").write_text(text)
    assert main(["translate", str(tmp_path / "text")]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llava-trainer translate: ")
    assert message in err


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture, content: bytes | None):
    file = tmp_path / "missing"
    if content:
        file.write_bytes(content)
    assert main(["translate", str(file)]) == 1
    assert f"{file} cannot be read" in capsys.readouterr().err


def test_a_text_that_is_too_long_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "long").write_text("x" * 2_000_001)
    assert main(["translate", str(tmp_path / "long")]) == 1
    assert "give the part with the commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "17"], "must be a number from 0 to 16"),
        (["--nodes", "0"], "must be a number from 1 to"),
        (["--set", "R"], "must be NAME=VALUE"),
        (["--gpu", "x"], "must be a number"),
    ],
)
def test_wrong_options_are_refused(capsys: pytest.CaptureFixture, options: list[str], message: str):
    with pytest.raises(SystemExit) as caught:
        main(["translate", "x", *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_files_that_are_no_settings_are_left_alone(script: Path, capsys: pytest.CaptureFixture):
    (script.parent / "mine.json").mkdir()
    assert main(["translate", str(script), "--set", "R=8"]) == 0
    assert "neither its name nor its content tells the stage" in capsys.readouterr().err


def test_nothing_heavy_is_imported(script: Path):
    code = (
        f"import sys; from llava_trainer.cli import main; code = main(['translate', {str(script)!r}, '--set', 'R=8']); "
        "heavy = {'torch', 'transformers', 'peft', 'deepspeed', 'numpy'} & set(sys.modules); "
        "sys.exit(f'code {code}, imported {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
