"""The v1 conversation, character for character."""

from dataclasses import replace

from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.template import SYSTEM, render, render_prompt


def make_sample(*texts: str, image_turns: tuple[int, ...] = (0,)) -> Sample:
    turns = tuple(Turn(role="assistant" if index % 2 else "user", text=text) for index, text in enumerate(texts))
    return Sample(
        id="s", images=tuple(f"{number}.png" for number in range(len(image_turns))), turns=turns,
        source=Source(file="e.json", index=0), image_turns=image_turns,
    )  # fmt: skip


def test_system_text_is_that_of_v1():
    assert SYSTEM == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )


def test_one_space_before_the_first_user_and_none_after_an_answer():
    conversation = render(make_sample("How much?", "9.00", "When?", "Today."))
    assert conversation.text == (
        f"{SYSTEM} USER: <image>\nHow much? ASSISTANT: 9.00</s>USER: When? ASSISTANT: Today.</s>"
    )


def test_learned_are_the_answers_with_their_end_and_nothing_else():
    conversation = render(make_sample("How much?", "9.00", "When?", "Today ASSISTANT: at noon."))
    learned = [conversation.text[begin:end] for begin, end in conversation.supervised]
    assert learned == [" 9.00</s>", " Today ASSISTANT: at noon.</s>"]


def test_the_image_stands_at_the_beginning_of_the_turn_that_shows_it():
    later = render(make_sample("Hello.", "Hi.", "What is this?", "A cat.", image_turns=(2,)))
    assert later.text.endswith("USER: Hello. ASSISTANT: Hi.</s>USER: <image>\nWhat is this? ASSISTANT: A cat.</s>")
    assert "<image>" not in render(make_sample("Hello.", "Hi.", image_turns=())).text


def test_a_system_message_stands_in_place_of_llavas_text():
    sample = replace(make_sample("How much?", "9.00"), system="Be brief.")
    conversation = render(sample)
    assert conversation.text == "Be brief. USER: <image>\nHow much? ASSISTANT: 9.00</s>"
    ((begin, _),) = conversation.supervised
    assert render_prompt(sample.turns[:1], image_turns=(0,), system="Be brief.") == conversation.text[:begin]


def test_a_prompt_is_what_training_has_before_the_answer():
    sample = make_sample("How much?", "9.00", "When?", "Today.")
    conversation = render(sample)
    for turns, (begin, _) in zip((sample.turns[:1], sample.turns[:3]), conversation.supervised, strict=True):
        assert render_prompt(turns, image_turns=(0,)) == conversation.text[:begin]
    assert render_prompt(sample.turns[:1], image_turns=()) == f"{SYSTEM} USER: How much? ASSISTANT:"
