"""``llava-trainer chat`` on toy models: what is answered, that every option counts, and what is told of wrong input."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_api.spec import Generation
from llava_api.text import escape
from llava_trainer import cli
from llava_trainer.chat import command
from llava_trainer.chat.conversation import Conversation, encode
from llava_trainer.chat.options import CONV_MODES, read_options
from llava_trainer.chat.speakers import find_aspect_ratio, load_speakers
from llava_trainer.data.images import ImageError
from llava_trainer.data.processor import load_processor
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.model.adapter_folder import CONFIG_FILE
from llava_trainer.model.answering import Answerer, Generated
from llava_trainer.model.quantization import count_parameter_bytes
from tests.trainer.runs import make_adapter, make_random_base

SHORT = ("--max-new-tokens", "6", "--device", "cpu")
GREEDY = (*SHORT, "--temperature", "0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it, and two pictures."""
    folder = tmp_path_factory.mktemp("chat")
    make_random_base(folder / "base")
    make_adapter(folder / "base", folder / "adapter")
    for seed, name in enumerate(("a.png", "b, c.png")):
        colours = torch.randint(0, 255, (4, 4, 3), generator=torch.manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(colours.numpy()).resize((40, 20), Image.Resampling.NEAREST).save(folder / name)
    return folder


def expect(
    made: Path,
    said: Sequence[str],
    *,
    images: Sequence[str] = (),
    adapter: bool = False,
    system: str = "",
    **how: object,
) -> list[str]:
    """What the model answers to questions, one after the other."""
    generation = Generation(**{"temperature": 0, "max_new_tokens": 6, **how})  # type: ignore[arg-type]
    processor = load_processor(made / "base", "pad")
    conversation, answers = Conversation(system=system), []
    shown = [made / image for image in images]
    adapter_dir = made / "adapter" if adapter else None
    with load_answerer(made / "base", processor, "cpu", torch.float32, adapter_dir=adapter_dir) as answerer:
        for question in said:
            conversation = conversation.ask(question, shown)
            prompt = encode(conversation, processor, max_new_tokens=6, context=4096)
            answers.append(answerer.answer_as_told(prompt, generation).text)
            conversation, shown = conversation.answer(answers[-1]), []
    return [escape(answer, multiline=True) for answer in answers]


def chat(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["chat", *arguments]) == command.EXIT_ANSWERED
    return capsys.readouterr().out


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["chat", *arguments]) == command.EXIT_NOT_ANSWERED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("llava-trainer chat: ")
    return captured.err


def test_the_command_answers_and_follow_up_questions_know_what_was_said(made: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llava_trainer.cli", "chat", "--model", str(made / "base"), *GREEDY,
         "--image", str(made / "a.png")],
        input="What is it?\n\nAnd now?\n/image nowhere.png\n/clear\nWhat is it?\n/quit\nnever asked\n",
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = expect(made, ["What is it?", "And now?"], images=["a.png"])
    assert done.stdout.splitlines() == [first, second, first]
    assert "picture nowhere.png does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_base_and_tuned_answer_side_by_side(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = ("--model", str(made / "adapter"), "--base", str(made / "base"), *GREEDY)
    said = ["What is it?", "And now?"]
    base, tuned = expect(made, said), expect(made, said, adapter=True)
    assert base != tuned
    told = chat(capsys, *adapter, *said)
    assert told.splitlines() == [f"base: {base[0]}", f"tuned: {tuned[0]}", f"base: {base[1]}", f"tuned: {tuned[1]}"]
    assert chat(capsys, *adapter, "--tuned-only", *said).splitlines() == tuned


def test_every_argument_of_eval_model_counts(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model_path", str(made / "base"), "--query", "What is it?", "--device", "cpu")
    (greedy,) = expect(made, ["What is it?"])
    assert chat(capsys, *asked, "--temperature", "0", "--max_new_tokens", "6") == f"{greedy}\n"
    # Sampling: as seeded, and with a nucleus of one token as good as greedy.
    hot = (*asked, "--max_new_tokens", "6", "--temperature", "10")
    (sampled,) = expect(made, ["What is it?"], temperature=10, seed=3)
    assert sampled != greedy
    assert chat(capsys, *hot, "--seed", "3") == f"{sampled}\n"
    assert chat(capsys, *hot, "--seed", "3", "--top_p", "0.000001") == f"{greedy}\n"
    (beams,) = expect(made, ["What is it?"], num_beams=4)
    assert beams != greedy
    assert chat(capsys, *asked, "--temperature", "0", "--max_new_tokens", "6", "--num_beams", "4") == f"{beams}\n"
    (short,) = expect(made, ["What is it?"], max_new_tokens=2)
    assert short != greedy
    assert chat(capsys, *asked, "--temperature", "0", "--max_new_tokens", "2") == f"{short}\n"


def test_conv_mode_changes_the_system_text(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", str(made / "base"), *GREEDY, "What is it?")
    (ours,) = expect(made, ["What is it?"])
    (human,) = expect(made, ["What is it?"], system=CONV_MODES["llava_v1"])
    assert ours != human
    assert chat(capsys, *asked, "--conv-mode", "vicuna_v1") == chat(capsys, *asked) == f"{ours}\n"
    assert chat(capsys, *asked, "--conv_mode", "llava_v1") == f"{human}\n"


def test_several_pictures_are_shown(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", str(made / "base"), *GREEDY, "What is it?")
    one, two = (
        expect(made, ["What is it?"], images=["a.png"]),
        expect(made, ["What is it?"], images=["a.png", "b, c.png"]),
    )
    assert one != two
    assert chat(capsys, *asked, "--image", str(made / "a.png")).splitlines() == one
    names = f"{made / 'a.png'};{made / 'b, c.png'}"
    assert chat(capsys, *asked, "--image_file", names, "--sep", ";").splitlines() == two
    # A name that the separator is part of.
    assert chat(capsys, *asked, "--image", str(made / "a.png"), "--image", str(made / "b, c.png")).splitlines() == two
    # Where LLaVA's own code puts pictures, for which they need no mark here.
    marked = (*asked[:-1], "<image-placeholder>\nWhat is it?", "--image", str(made / "a.png"))
    assert chat(capsys, *marked).splitlines() == one


def test_bits_are_really_taken_away(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {}
    for option in ("", "--load-8bit", "--load_4bit"):
        arguments = ["--model", str(made / "base"), *GREEDY, *([option] if option else []), "What is it?"]
        assert chat(capsys, *arguments) != ""
        with load_speakers(read_options(arguments)) as (speaker,):
            layer = speaker.answerer.model.model.language_model.layers[0].mlp.up_proj
            sizes[option] = count_parameter_bytes(layer)
    assert sizes["--load-8bit"] == sizes[""] / 4
    assert sizes["--load_4bit"] == sizes[""] / 8


def test_a_picture_becomes_square_as_the_model_s_processor_says(made: Path, tmp_path: Path) -> None:
    assert find_aspect_ratio(made / "base") == "pad"
    for name, settings, expected in (
        ("processor_config.json", {"image_processor": {"do_pad": False}}, "square"),
        ("preprocessor_config.json", {"do_pad": False}, "square"),
        ("preprocessor_config.json", {"do_pad": True}, "pad"),
        ("preprocessor_config.json", {"crop_size": 336}, "pad"),
        ("processor_config.json", {"image_processor": "x"}, "pad"),
    ):
        folder = tmp_path / f"{name}-{expected}-{len(settings)}-{len(str(settings))}"
        folder.mkdir()
        (folder / name).write_text(json.dumps(settings))
        assert find_aspect_ratio(folder) == expected


def test_an_answer_that_is_cut_off_says_so(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--model", str(made / "base"), *GREEDY, "What is it?"]) == 0
    assert "(cut off after 6 tokens: --max-new-tokens)" in capsys.readouterr().err


def test_what_a_model_says_is_fit_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write = command._Writer("tuned: ")
    for piece in (" ", " a\x1b[2J", "\u202eb\n", "c "):
        write(piece)
    write.end()
    assert capsys.readouterr().out == "tuned: a\\x1b[2J\\u202eb\nc \n"
    silent = command._Writer("")
    silent.end()
    assert capsys.readouterr().out == "(nothing)\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("Tried to allocate 2 GiB"), "needs more memory than the GPU has: lower --max-new-tok"),
        (ImageError("is damaged"), "a picture has changed since it was checked: it is damaged"),
    ],
)
def test_of_a_question_that_one_model_cannot_answer_neither_remembers_anything(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """It is asked once more: whoever has answered it is not to be asked it twice."""
    asked = ["--model", str(made / "adapter"), "--base", str(made / "base"), *GREEDY]
    options, answer, calls = read_options(asked), Answerer.answer_as_told, iter(range(9))

    def fail_once(*arguments: Any) -> Generated:
        if next(calls) == 1:
            raise error
        return answer(*arguments)

    monkeypatch.setattr(Answerer, "answer_as_told", fail_once)
    with load_speakers(options) as speakers:
        command._converse(speakers, options, iter(["What is it?", "What is it?"]))
        told = [[turn.text for turn in speaker.conversation.turns] for speaker in speakers]
    (base,), (tuned,) = expect(made, ["What is it?"]), expect(made, ["What is it?"], adapter=True)
    shown = capsys.readouterr()
    assert f"base: {base}\ntuned: {tuned}\n" in shown.out
    assert message in shown.err
    assert [turns[0] for turns in told] == ["What is it?"] * 2
    assert [len(turns) for turns in told] == [2, 2]


def png_of(width: int, height: int) -> bytes:
    """The beginning of a picture that says how large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_pictures_that_cannot_be_shown_are_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", str(made / "base"), *GREEDY, "What is it?", "--image")
    (tmp_path / "huge.png").write_bytes(png_of(100_000, 100_000))
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        (str(tmp_path / "none.png"), "does not exist"),
        (str(tmp_path), "is no file"),
        (str(tmp_path / "pipe.png"), "is no file"),
        (str(tmp_path / "text.png"), "is not one of"),
        (str(tmp_path / "huge.png"), "100000 x 100000 px, more than"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("https://example.com/a.png", "is an address: download it"),
        ("a\x1b[2J.png", "a\\x1b[2J.png does not exist"),
    ):
        assert message in refuse(capsys, *asked, name)


def test_folders_that_cannot_be_loaded_are_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = shutil.copytree(made / "adapter", tmp_path / "dora")
    settings = json.loads((strange / CONFIG_FILE).read_text())
    (strange / CONFIG_FILE).write_text(json.dumps(settings | {"use_dora": True}))
    damaged = shutil.copytree(made / "base", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    broken = shutil.copytree(made / "adapter", tmp_path / "broken")
    (broken / CONFIG_FILE).write_text("[")
    base = ("--base", str(made / "base"))
    for arguments, message in (
        (("--model", str(tmp_path / "none")), "--model is"),
        (("--model", str(made / "base"), "--base", str(made / "a.png")), "--base is"),
        (("--model", str(made / "adapter")), "an adapter: set --base"),
        (("--model", str(strange), *base), "use_dora is True"),
        (("--model", str(broken), *base), "cannot be read"),
        (("--model", str(tmp_path)), "config.json does not exist"),
        (("--model", str(damaged)), "cannot be loaded"),
        (("--model", str(made / "base"), "--device", "cuda"), "--device is cuda"),
    ):
        if "--device" in arguments and torch.cuda.is_available():
            continue
        assert message in refuse(capsys, *SHORT[:2], *arguments, "What?")


def test_questions_that_cannot_be_asked_are_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", str(made / "base"))
    for question, message in (
        ("  ", "the question is empty"),
        ("<image>", "the question is empty"),
        ("What?</s>", "special token </s>"),
        ("What? " * 5000, "is more than the"),
    ):
        assert message in refuse(capsys, *asked, *GREEDY, question)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--conv-mode", "v2"), "'v2' is none of LLaVA's templates; LLaVA v1.5 knows: vicuna_v1, v1, llava_v1"),
        (("--conv-mode", "mpt"), "mpt is the template of other models of LLaVA"),
        (("--temperature", "nan"), "is 'nan' but must be a number from 0 to 10"),
        (("--temperature", "-1"), "is '-1' but must be a number from 0 to 10"),
        (("--top-p", "0"), "is '0' but must be a number above 0 up to 1"),
        (("--num-beams", "0"), "is '0' but must be a whole number from 1 to 16"),
        (("--max-new-tokens", "1e9"), "is '1e9' but must be a whole number from 1 to 8192"),
        (("--load-8bit", "--load-4bit"), "exclude each other"),
        (("--tuned-only",), "there is none: set --base"),
        (("--sep", ""), "--sep is empty"),
        (("--image-aspect-ratio", "anyres"), "invalid choice"),
    ],
)
def test_wrong_options_are_told(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["chat", "--model", "x", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_person_is_prompted_and_control_d_ends(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("What is it?\n"))
    (answer,) = expect(made, ["What is it?"])
    assert chat(capsys, "--model", str(made / "base"), *GREEDY) == f"> {answer}\n> "
