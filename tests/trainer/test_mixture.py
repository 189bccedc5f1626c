"""Further datasets mixed into training: what an epoch has, who sees it, and what prepare finds and leaves out."""

import dataclasses
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from llava_api.constants import SecretRole, StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset_report import DatasetReport
from llava_trainer.data.mixed_samples import count_drawn
from llava_trainer.data.processor import Processor
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.data.samples import Sample, Source, Turn, read_samples, write_samples
from llava_trainer.errors import StageError
from llava_trainer.evaluation.course import find_hardest
from llava_trainer.files import sha256_file
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.sources.fetching import list_roles
from llava_trainer.stages import prepare
from llava_trainer.training.batch_plan import LOOKED_THROUGH, BatchPlan, make_plan
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.curve import read_curve
from llava_trainer.training.mixture import Mixture
from llava_trainer.training.phase import open_samples, phase_of
from llava_trainer.training.train import train
from tests.trainer.attempts import begin, begin_first
from tests.trainer.exports import conversation, draw_image, prepare_config, write_json
from tests.trainer.many import run_in_processes
from tests.trainer.test_plan import draw_sizes
from tests.trainer.test_prepare import Recorder, notes_of, report_of
from tests.trainer.trainings import StopAfter, configure, make_dataset, text_only

# --- what an epoch has


@pytest.mark.parametrize("shares", [[0.2], [0.5], [0.1, 0.3], [0.9], [0.01, 0.98]])
@pytest.mark.parametrize("num_main", [1, 10, 999])
def test_the_shares_are_of_an_epochs_samples(num_main: int, shares: list[float]):
    drawn = count_drawn(num_main, shares)
    total = num_main + sum(drawn)
    for share, count in zip(shares, drawn, strict=True):
        assert count >= 1
        # To the nearest sample, and one at least.
        assert abs(count - share * num_main / (1 - sum(shares))) <= max(0.5, 1 - share)
        assert num_main < 100 or count / total == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [1.5], [0.2, 0.0], [-0.1]])
def test_shares_that_leave_nothing_are_refused(shares: list[float]):
    with pytest.raises(ValueError, match="must be more than 0, and less than 1 together"):
        count_drawn(10, shares)


@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 7), (7, 20), (1, 5), (100, 1), (6, 4)])
def test_nothing_comes_again_before_all_has_been_seen_and_each_pass_has_another_order(size: int, count: int):
    mixture = Mixture(num_main=10, sizes=(size,), drawn=(count,))
    row = np.concatenate([mixture.list_epoch(epoch, 7)[10:] for epoch in range(max(60, 5 * size))]) - 10
    passes = [row[begin : begin + size].tolist() for begin in range(0, len(row) - size + 1, size)]
    assert all(sorted(one) == list(range(size)) for one in passes)
    # A few of so many orders of six are alike by chance.
    assert size < 6 or len({tuple(one) for one in passes}) > 0.9 * len(passes)
    # And another one with another seed.
    assert size < 6 or not np.array_equal(row[:count], mixture.list_epoch(0, 8)[10:] - 10)


def test_each_epoch_has_the_dataset_itself_once_and_whole_and_the_others_beside_it():
    mixture = Mixture(num_main=10, sizes=(4, 30), drawn=(6, 5))
    assert (mixture.samples_per_epoch, mixture.epochs_per_pass) == (21, 6)
    for epoch in range(9):
        counts = Counter(mixture.list_epoch(epoch, 1).tolist())
        assert [counts[index] for index in range(10)] == [1] * 10
        assert sum(counts[index] for index in range(10, 14)) == 6
        assert sum(counts[index] for index in range(14, 44)) == 5
        assert max(counts) < 44


def test_datasets_of_one_size_are_not_drawn_from_in_one_order():
    drawn = Mixture(num_main=0, sizes=(50, 50), drawn=(50, 50)).list_epoch(0, 1)
    assert not np.array_equal(drawn[:50], drawn[50:] - 50)


# --- who sees it


def mixed_plan(**changes: Any) -> BatchPlan:
    given: dict[str, Any] = {
        "sizes": draw_sizes(20 + 9 + 16), "global_batch": 8, "per_device_batch": 2, "max_length": 60,
        "world_size": 2, "epochs": 4, "seed": 3, "mixture": Mixture(num_main=20, sizes=(9, 16), drawn=(5, 7)),
    }  # fmt: skip
    return BatchPlan(**(given | changes))


SETTINGS = [{"grouping": grouping, "packing": packing}
            for grouping in ("modality", "length", "none") for packing in (False, True)]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_epoch_is_dealt_out_whole_however_it_is_grouped_and_packed(settings: dict[str, Any]):
    plan = mixed_plan(**settings)
    assert (plan.num_samples, plan.steps_per_epoch, plan.total_steps) == (32, 4, 16)
    for epoch in range(plan.epochs):
        steps = range(epoch * 4, epoch * 4 + 4)
        wanted = Counter(plan.mixture.list_epoch(epoch, plan.seed).tolist())
        assert Counter(itertools.chain(*(plan.batch(step) for step in steps))) == wanted
        dealt = [index for step in steps for rank in range(2) for rows in plan.rank_batch(step, rank)
                 for row in rows for index in row]  # fmt: skip
        assert Counter(dealt) == wanted


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_any_number_of_ranks_sees_the_same_in_every_step(settings: dict[str, Any]):
    alone = mixed_plan(world_size=1, **settings)
    for world_size in (2, 3, 5):
        many = mixed_plan(world_size=world_size, **settings)
        assert [alone.batch(step) for step in range(16)] == [many.batch(step) for step in range(16)]


def test_without_a_mixture_the_order_is_what_it_was():
    plain = mixed_plan(mixture=None)
    empty = mixed_plan(mixture=Mixture(num_main=45, sizes=(), drawn=()))
    assert [plain.batch(step) for step in range(12)] == [empty.batch(step) for step in range(12)]


def test_batches_hold_their_part_of_the_mixture_where_samples_are_alike():
    sizes = draw_sizes(800 + 3000)
    plan = mixed_plan(
        sizes=dataclasses.replace(sizes, images=np.ones(3800, dtype=int)), global_batch=100, epochs=1,
        mixture=Mixture(num_main=800, sizes=(3000,), drawn=(200,)),
    )  # fmt: skip
    mixed = [sum(index >= 800 for index in plan.batch(step)) for step in range(plan.total_steps)]
    assert sum(mixed) == 200
    assert min(mixed) >= 8
    assert max(mixed) <= 35


def test_the_largest_micro_batch_is_looked_for_until_all_of_a_mixture_has_been_seen():
    """400 epochs, of which a dataset that is drawn from sparingly takes 300 until its longest sample comes."""
    tokens = np.full(10 + 300, 10)
    mixture = Mixture(num_main=10, sizes=(300,), drawn=(1,))
    last = int(mixture.list_epoch(299, 3)[-1])
    tokens[last] = 60
    nothing = np.zeros(310, dtype=int)
    plan = mixed_plan(
        sizes=SampleSizes(tokens=tokens, images=nothing, supervised=nothing + 1), mixture=mixture, epochs=400,
        global_batch=1, per_device_batch=1, world_size=1, grouping="none",
    )  # fmt: skip
    assert LOOKED_THROUGH // plan.steps_per_epoch < 299
    assert plan.find_largest().tokens == 60


# --- samples of several files


def make_sample(name: str, *, images: tuple[str, ...] = ()) -> Sample:
    turns = (Turn(role="user", text=f"What is {name}?"), Turn(role="assistant", text=name))
    return Sample(
        id=name, images=images, image_turns=(0,) * len(images), turns=turns, source=Source(file="e.json", index=0)
    )


def test_samples_of_several_files_are_numbered_one_after_the_other_and_find_their_own_images(
    tmp_path: Path, toy_processor: Processor
):
    config = mixed_training(tmp_path, tmp_path, [[make_sample("a"), make_sample("b")], [make_sample("c")],
                                                 [make_sample("d", images=("x/1.png",))]])  # fmt: skip
    phase = phase_of(config)
    with open_samples(phase) as samples:
        assert len(samples) == 4
        assert samples.sizes_mixed == (1, 1)
        assert [samples[index].id for index in range(4)] == ["a", "b", "c", "d"]
        # Found by the loader that knows the first dataset's folder alone.
        image = samples[3].images[0]
        assert phase.images.find(image) == tmp_path / "mixed-1" / "images" / "x" / "1.png"
        for index in (-1, 4):
            with pytest.raises(IndexError):
                samples[index]
        sizes = samples.measure(toy_processor, "v1", 256)
        assert sizes.images.tolist() == [0, 0, 0, 1]
        assert len(sizes) == 4
        plan = make_plan(phase, sizes, 1, samples.sizes_mixed)
        assert plan.mixture == Mixture(num_main=2, sizes=(1, 1), drawn=(1, 1))
        assert [samples.describe_place(index) for index in range(4)] == [
            "train.jsonl line 1", "train.jsonl line 2", "mixture-0.jsonl line 1", "mixture-1.jsonl line 1"
        ]  # fmt: skip
        with pytest.raises(IndexError):
            samples.describe_place(4)
        with pytest.raises(StageError, match=r"mixture-1\.jsonl holds no sample"):
            make_plan(phase, sizes, 1, (2, 0))


def mixed_training(
    root: Path, model_dir: Path, parts: list[list[Sample]], *, attempt: int = 1, share: float = 0.25, **training: Any
) -> RunConfig:
    """A training on the first of ``parts``, with the others mixed in; their images lie at ``root``/mixed-N/images."""
    config = configure(root, model_dir, attempt=attempt, training=training)
    dataset = {"source": "pvc://general/", "format": "llava", "file": "export.json", "images": "images"}
    fields = config.model_dump(by_alias=True)
    fields["mixture"] = [{"dataset": dataset, "share": share} for _ in parts[1:]]
    fields["mixtureDirs"] = [root / f"mixed-{index}" for index in range(len(parts) - 1)]
    config = begin_first(RunConfig.model_validate(fields))
    write_samples(config.volume.train_file, parts[0])
    for index, part in enumerate(parts[1:]):
        write_samples(config.volume.mixture_file(index), part)
    return config


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Sample]]]:
    """A dataset, and one to mix in: some of its own samples show an image."""
    folder = tmp_path_factory.mktemp("parts")
    main = make_dataset(folder / "dataset")[:12]
    mixed = make_dataset(folder / "mixed-0")[12:22]
    return folder, [main, [*mixed, *(text_only(sample) for sample in mixed[:3])]]


def link_parts(root: Path, folder: Path) -> None:
    root.mkdir(exist_ok=True)
    for name in ("dataset", "mixed-0"):
        if not (root / name).exists():
            (root / name).symlink_to(folder / name)


def losses(config: RunConfig) -> list[float]:
    return [point.loss for point in read_curve(config.volume.history_file(config.run.stage, config.run.attempt))]


def run_all(world: World, configs: list[tuple[RunConfig, int]]) -> None:
    for config, until in configs:
        if world.is_first:
            begin(config)
        try:
            train(config, world, Reporter(config), StopAfter(until))
        except StageError as error:
            if f"the checkpoint of step {until} is on the volume" not in error.message:
                raise


PLAIN = {"epochs": 3, "batch": {"perDevice": 2, "global": 8}, "warmupRatio": 0.0}


def test_two_processes_and_a_restart_learn_what_one_learns(
    tmp_path: Path, toy_model_dir: Path, parts: tuple[Path, list[list[Sample]]], world: World
):
    def make(name: str, attempt: int = 1) -> RunConfig:
        link_parts(tmp_path / name, parts[0])
        return mixed_training(tmp_path / name, toy_model_dir, parts[1], attempt=attempt, **PLAIN)

    alone = make("alone")
    run_all(world, [(alone, 6)])
    # 12 samples and 4 of the mixture, in two steps an epoch.
    assert len(losses(alone)) == 6
    together, moved = make("together"), make("moved")
    run_in_processes(2, run_all, [(together, 6), (moved, 3)])
    resumed = make("moved", attempt=2)
    run_all(world, [(resumed, 6)])
    assert losses(together) == pytest.approx(losses(alone), abs=1e-5)
    assert losses(resumed) == pytest.approx(losses(alone), abs=1e-5)


def test_a_checkpoint_of_another_mixture_is_refused(
    tmp_path: Path, toy_model_dir: Path, parts: tuple[Path, list[list[Sample]]], world: World
):
    link_parts(tmp_path, parts[0])
    config = mixed_training(tmp_path, toy_model_dir, parts[1], **PLAIN)
    run_all(world, [(config, 1)])
    others = (
        mixed_training(tmp_path, toy_model_dir, parts[1], attempt=2, share=0.24, **PLAIN),
        mixed_training(tmp_path, toy_model_dir, [parts[1][0], parts[1][1][::-1]], attempt=2, **PLAIN),
        mixed_training(tmp_path, toy_model_dir, parts[1][:1], attempt=2, **PLAIN),
    )
    for index, other in enumerate(others):
        samples = parts[1][1][::-1] if index == 1 else parts[1][1]
        write_samples(config.volume.mixture_file(0), samples)
        with pytest.raises(StageError, match="it was made with another mixture, or with none") as caught:
            run_all(world, [(other, 6)])
        assert caught.value.reason is Reason.CHECKPOINT_MISMATCH


def test_images_of_the_mixture_are_loaded_from_its_own_folder(
    tmp_path: Path, toy_model_dir: Path, toy_processor: Processor
):
    draw_image(tmp_path / "dataset" / "images" / "a.png", seed=1)
    draw_image(tmp_path / "mixed-0" / "images" / "a.png", seed=2)
    shown = [make_sample("a", images=("a.png",))]
    config = mixed_training(tmp_path, toy_model_dir, [shown, shown], share=0.5, batch={"perDevice": 1, "global": 2})
    phase = phase_of(config)
    with open_samples(phase) as samples:
        plan = make_plan(phase, samples.measure(toy_processor, "v1", 256), 1, samples.sizes_mixed)
        with BatchLoader(samples, toy_processor, images=phase.images, max_length=256, plan=plan, rank=0) as loader:
            first, second = (loader.load_rows(((index,),)).tensors["pixel_values"] for index in (0, 1))
    assert first is not None
    assert second is not None
    assert not np.array_equal(first.numpy(), second.numpy())


def test_the_hardest_samples_are_those_of_all_files_with_their_own_images(
    tmp_path: Path, toy_model_dir: Path, parts: tuple[Path, list[list[Sample]]], world: World,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    link_parts(tmp_path, parts[0])
    config = mixed_training(tmp_path, toy_model_dir, parts[1], **PLAIN)
    run_all(world, [(config, 6)])
    found = find_hardest(config)
    assert found is not None
    assert (found.epoch, found.epochs, found.seen, found.num_samples, len(found.samples)) == (3, 3, 16, 16, 16)
    main, mixed = parts[1]
    for one in found.samples:
        own = one.found.index < len(main)
        file, line = ("train", one.found.index) if own else ("mixture-0", one.found.index - len(main))
        assert one.place == f"{file}.jsonl line {line + 1}"
        assert one.sample.id == (main if own else mixed)[line].id
        assert all(phase_of(config).images.find(image).is_file() for image in one.sample.images)
    shown = [one for one in found.samples if one.place.startswith("mixture-0")]
    assert len(shown) == 4
    assert {Path(image).parents[1] for one in shown for image in one.sample.images} == {tmp_path / "mixed-0"}
    # Fewer samples in the mixture than a number names, and another epoch than the one that was gone through.
    write_samples(config.volume.mixture_file(0), mixed[:1])
    assert find_hardest(config) is None
    write_samples(config.volume.mixture_file(0), mixed)
    write_samples(config.volume.train_file, [*main, *main])
    assert find_hardest(config) is None
    assert caplog.text.count("they are of other samples than the run has") == 2


def test_a_batch_without_anything_to_learn_is_told_by_files_and_lines(
    tmp_path: Path, toy_model_dir: Path, world: World
):
    said = [dataclasses.replace(one, turns=(Turn(role="user", text="word " * 300), one.turns[1]))
            for one in (make_sample(name) for name in "abcd")]  # fmt: skip
    config = mixed_training(
        tmp_path, toy_model_dir, [said[:2], said], share=0.5, batch={"perDevice": 2, "global": 4}, grouping="none"
    )
    with pytest.raises(StageError, match=r"no token of step 1's 4 samples is supervised") as caught:
        run_all(world, [(config, 6)])
    assert caught.value.reason is Reason.NOTHING_SUPERVISED
    told = re.findall(r"(train|mixture-0)\.jsonl line (\d)", caught.value.message)
    assert sorted(told)[2:] == [("train", "1"), ("train", "2")]
    assert {name for name, _ in sorted(told)[:2]} == {"mixture-0"}


# --- what prepare finds


def prepare_mixed(root: Path, model_dir: Path, mixture: list[tuple[list[Any], float]], **changes: Any) -> RunConfig:
    """A prepare stage with datasets mixed in, whose images lie at ``root``/mixed-N/images."""
    parts = []
    for index, (entries, share) in enumerate(mixture):
        write_json(root / f"mixed-{index}" / "general.json", entries)
        dataset = {"source": f"pvc://general-{index}/", "format": "llava", "file": "general.json", "images": "images"}
        parts.append({"dataset": dataset, "share": share})
    dirs = [root / f"mixed-{index}" for index in range(len(mixture))]
    return prepare_config(root, model_dir, mixture=parts, mixtureDirs=dirs, **changes)


def write_main(root: Path, count: int = 24) -> None:
    write_json(root / "dataset" / "export.json", [conversation(f"{n:03}.png", [("Q?", "A")]) for n in range(count)])
    for index in range(count):
        draw_image(root / "dataset" / "images" / f"{index:03}.png", seed=index)


def talk(text: str, **changes: Any) -> dict[str, Any]:
    return conversation(None, [(f"What about {text}?", f"About {text}.")], **changes)


def run(config: RunConfig):
    return prepare.run(config, Recorder(config))


def test_each_dataset_is_checked_counted_and_reported_by_itself(tmp_path: Path, toy_model_dir: Path):
    write_main(tmp_path)
    general = [talk(str(n)) for n in range(40)]
    draw_image(tmp_path / "mixed-1" / "images" / "z.png", seed=99)
    shown = [conversation("z.png", [(f"Q{n}?", "A")]) for n in range(3)]
    config = prepare_mixed(tmp_path, toy_model_dir, [(general, 0.25), (shown, 0.25)])
    output = run(config)
    numbers, report = output.numbers, report_of(config)
    # 18 of 24 are trained on, which is half of an epoch.
    assert (numbers.samples_train, numbers.samples_mixture, numbers.samples_withheld) == (18, 18, 0)
    assert [(part.share, part.drawn, part.withheld) for part in report.mixture] == [(0.25, 9, 0), (0.25, 9, 0)]
    assert [part.dataset.train.samples for part in report.mixture] == [40, 3]
    assert [part.dataset.validation.samples for part in report.mixture] == [0, 0]
    assert report.samples_per_epoch == 36
    volume = config.volume
    assert [len(list(read_samples(volume.mixture_file(index)))) for index in (0, 1)] == [40, 3]
    assert output.digests.keys() == {"train", "validation", "mixture-0", "mixture-1"}
    assert output.digests["mixture-1"] == sha256_file(volume.mixture_file(1))
    # Only the dataset itself is held out.
    assert {sample.source.file for sample in read_samples(volume.validation_file)} == {"export.json"}
    page = volume.dataset_report_html.read_text()
    for told in ("Mixture 1 dataset", "Mixture 2 dataset", "9 of 36 (25% asked for), from 40 samples"):
        assert told in page
    assert "18 samples of 36: each once" in page


def test_what_a_process_holds_at_most_may_come_from_the_mixture(tmp_path: Path, toy_model_dir: Path):
    write_main(tmp_path)
    long = [conversation(None, [("Tell me.", " ".join(["word"] * 60))])]
    training = {"maxLength": 512, "batch": {"perDevice": 2, "global": 4}, "epochs": 2}
    plain = run(prepare_config(tmp_path, toy_model_dir, training=training)).numbers
    mixed = run(prepare_mixed(tmp_path, toy_model_dir, [(long, 0.05)], training=training)).numbers
    assert mixed.largest.tokens > plain.largest.tokens
    assert mixed.largest.supervised > plain.largest.supervised


def test_what_is_held_out_is_left_out_of_the_mixture_and_counted(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(f"{n:03}.png", [("Q?", "A")], group=f"g{n}") for n in range(24)]
    write_main(tmp_path)
    write_json(tmp_path / "dataset" / "export.json", entries)
    for index in range(24):
        # The same pixels under other names.
        draw_image(tmp_path / "mixed-0" / "images" / f"copy-{index}.png", seed=index)
    general = [conversation(f"copy-{n}.png", [("Describe it.", "A scan.")]) for n in range(24)]
    general += [talk(str(n), group=f"g{n}") for n in range(24)]
    config = prepare_mixed(tmp_path, toy_model_dir, [(general, 0.5)])
    numbers = run(config).numbers
    held_out = {sample.group.removeprefix("g") for sample in read_samples(config.volume.validation_file)}
    assert len(held_out) == 6
    kept = list(read_samples(config.volume.mixture_file(0)))
    seen = {name.removeprefix("copy-").removesuffix(".png") for sample in kept for name in sample.images}
    named = {sample.group.removeprefix("g") for sample in kept if sample.group}
    assert seen == named == {str(n) for n in range(24)} - held_out
    assert numbers.samples_withheld == 12
    (part,) = report_of(config).mixture
    assert (part.withheld, part.dataset.train.samples) == (12, 36)
    (note,) = [note for note in part.dataset.notes if note.kind == "withheld"]
    assert note.count == 12
    assert note.examples[0].message.startswith("shows copy-")
    assert "12 left out, since they show or belong to what is held out" in config.volume.dataset_report_html.read_text()


def test_a_text_that_is_held_out_is_left_out_of_the_mixture_as_well(tmp_path: Path, toy_model_dir: Path):
    write_json(tmp_path / "dataset" / "export.json", [talk(str(n)) for n in range(24)])
    config = prepare_mixed(tmp_path, toy_model_dir, [([talk(str(n)) for n in range(30)], 0.5)])
    numbers = run(config).numbers
    held_out = {sample.turns[0].text for sample in read_samples(config.volume.validation_file)}
    kept = {sample.turns[0].text for sample in read_samples(config.volume.mixture_file(0))}
    assert numbers.samples_withheld == len(held_out) == 6
    assert len(kept) == 24
    assert not kept & held_out
    (part,) = report_of(config).mixture
    (note,) = [note for note in part.dataset.notes if note.kind == "withheld"]
    assert note.examples[0].message.startswith("asks 'What about ")


def test_a_mixture_of_nothing_but_what_is_held_out_is_refused(tmp_path: Path, toy_model_dir: Path):
    write_main(tmp_path)
    plain = prepare_config(tmp_path, toy_model_dir)
    run(plain)
    held_out = next(iter(read_samples(plain.volume.validation_file))).images[0]
    draw_image(tmp_path / "mixed-0" / "images" / "copy.png", seed=int(held_out.removesuffix(".png")))
    config = prepare_mixed(tmp_path, toy_model_dir, [([conversation("copy.png", [("Q?", "A")])], 0.5)])
    with pytest.raises(StageError, match=r"general\.json: every sample shows a picture, names a group") as caught:
        run(config)
    assert caught.value.reason is Reason.INVALID_DATA


def test_what_is_refused_of_the_mixture_fails_the_run_and_is_listed_with_its_source(
    tmp_path: Path, toy_model_dir: Path
):
    write_main(tmp_path)
    general = [talk("a"), conversation("none.png", [("Q?", "A")])]
    config = prepare_mixed(tmp_path, toy_model_dir, [([talk("b")], 0.1), (general, 0.1)])
    with pytest.raises(StageError, match=r"general\.json\[1\]: picture images/none\.png does not exist"):
        run(config)
    listed = [json.loads(line) for line in config.volume.refused_entries_file.read_text().splitlines()]
    assert [(one["source"], one["file"], one["index"]) for one in listed] == [("pvc://general-1/", "general.json", 1)]
    report = report_of(config)
    assert not report.accepted
    assert [part.dataset.accepted for part in report.mixture] == [True, False]
    assert "Refused: 1 entry" in config.volume.dataset_report_html.read_text()
    assert not config.volume.mixture_file(0).exists()


def test_a_global_batch_by_the_data_counts_the_mixture(tmp_path: Path, toy_model_dir: Path):
    write_main(tmp_path)
    training = {"maxLength": 512, "batch": {"perDevice": 1, "global": "auto"}, "epochs": 50}
    plain = run(prepare_config(tmp_path, toy_model_dir, training=training)).numbers
    config = prepare_mixed(tmp_path, toy_model_dir, [([talk("a")], 0.5)], training=training)
    mixed = run(config).numbers
    # 18 and 36 samples, in two steps an epoch.
    assert (plain.global_batch, mixed.global_batch) == (17, 35)
    assert "36 samples in 50 epochs" in report_of(config).global_batch.reason


def test_a_report_without_a_mixture_is_an_older_images_too(tmp_path: Path, toy_model_dir: Path):
    write_main(tmp_path)
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    told = json.loads(config.volume.dataset_report_json.read_text())
    assert told.pop("mixture") == []
    assert DatasetReport.model_validate(told).mixture == ()
    assert "What an epoch has" not in config.volume.dataset_report_html.read_text()
    assert "withheld" not in notes_of(config)


# --- the run configuration


def test_a_run_without_a_mixture_is_configured_as_before(tmp_path: Path):
    fields = json.loads(prepare_config(tmp_path, tmp_path).model_dump_json())
    assert not {"mixture", "mixtureDirs"} & fields.keys()
    mixed = prepare_mixed(tmp_path, tmp_path, [([], 0.2)])
    written = json.loads(mixed.model_dump_json())
    assert written["mixture"][0]["share"] == 0.2
    # A format's own fields are left out there as well.
    assert not {"messages", "table"} & written["mixture"][0]["dataset"].keys()
    assert RunConfig.model_validate(written) == mixed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixtureDirs": []}, "mixtureDirs names 0 folders of 1 datasets"),
        ({"share": 1.0}, r"mixture.0.share\n  Input should be less than 1"),
        ({"share": 0.0}, "greater than 0"),
        ({"twice": 0.5}, "the shares must come to less than 1 together"),
    ],
)
def test_a_configuration_that_makes_no_epoch_is_refused(changes: dict[str, Any], told: str, tmp_path: Path):
    fields = json.loads(prepare_mixed(tmp_path, tmp_path, [([], 0.2)]).model_dump_json())
    (part,) = fields["mixture"]
    part["share"] = changes.get("share", part["share"])
    fields["mixtureDirs"] = changes.get("mixtureDirs", fields["mixtureDirs"])
    if "twice" in changes:
        fields["mixture"] = [{**part, "share": changes["twice"]}] * 2
        fields["mixtureDirs"] *= 2
    with pytest.raises(ValidationError, match=told):
        RunConfig.model_validate(fields)


def test_each_dataset_is_fetched_with_a_secret_of_its_own(tmp_path: Path):
    config = prepare_mixed(tmp_path, tmp_path, [([], 0.1), ([], 0.2)])
    roles = {role.name: role for role in list_roles(config)}
    second = roles["mixture-1"]
    assert (second.field, second.source) == ("spec.mixture[1].dataset.source", "pvc://general-1/")
    assert (second.secret, second.mounted) == (SecretRole.MIXTURE_1, tmp_path / "mixed-1")
    assert second.dataset.validation.file is None


def test_alignment_sees_nothing_of_the_mixture(tmp_path: Path):
    alignment = {"dataset": {"source": "pvc://c/", "format": "llava", "file": "c.json"}}
    config = prepare_mixed(tmp_path, tmp_path, [([], 0.2)], alignment=alignment, alignmentDir=tmp_path)
    assert phase_of(config, StageName.ALIGN).mixture == ()
    assert [part.share for part in phase_of(config, StageName.TRAIN).mixture] == [0.2]
