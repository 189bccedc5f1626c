"""On how many GPUs a command trains, by every way in which it may say so; or the option that is asked for."""

import pytest

from llava_trainer.translate.blocks import read_pasted
from llava_trainer.translate.errors import OptionMissingError, TranslateError
from llava_trainer.translate.launches import Launch, count_gpus, find_launches

TRAIN = "llava/train/train_mem.py --bf16 True"
HOSTS = "# two of a kind\nworker-1 slots=4\nworker-2 slots=4\n"


def find(text: str) -> Launch:
    (launch,) = find_launches(read_pasted(text, {}).commands)
    return launch


def count(text: str, hosts: str | None = None, gpus: int | None = None, nodes: int | None = None) -> tuple[int, int]:
    counted = count_gpus(find(text), lambda _: hosts, gpus, nodes)
    return counted.replicas, counted.per_replica


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("deepspeed --include localhost:0,1,2,3", (1, 4)),
        ("deepspeed -i=localhost:0", (1, 1)),
        ("deepspeed --include localhost:0,1@worker-1:2,3", (2, 2)),
        ("deepspeed --num_gpus 8", (1, 8)),
        ("deepspeed --num_gpus=8 --num_nodes=2 --master_port 29501", (2, 8)),
        ("CUDA_VISIBLE_DEVICES=4,5 deepspeed", (1, 2)),
        ("export CUDA_VISIBLE_DEVICES=4,5,6\ndeepspeed --no_local_rank", (1, 3)),
        ("torchrun --nproc_per_node 8", (1, 8)),
        ("torchrun --standalone --nnodes=2 --nproc-per-node=4", (2, 4)),
        ("torchrun --nnodes 1:4 --nproc_per_node 8", (4, 8)),
        ("python -m torch.distributed.run --nproc_per_node=2", (1, 2)),
        ("python3.10 -m torch.distributed.launch --use_env --nproc_per_node=2", (1, 2)),
        ("accelerate launch --num_processes 8 --num_machines 2", (2, 4)),
        ("CUDA_VISIBLE_DEVICES=0 python -u", (1, 1)),
        ("srun torchrun --nproc_per_node 8", (1, 8)),
    ],
)
def test_gpus_are_counted(launcher: str, expected: tuple[int, int]):
    assert count(f"{launcher} {TRAIN}") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--hostfile hosts", (2, 4)),
        ("--hostfile=hosts --num_nodes 1", (1, 4)),
        ("-H hosts --num_gpus 2 --num_nodes 2", (2, 2)),
        ("--hostfile hosts --include worker-1:0,1", (1, 2)),
    ],
)
def test_gpus_of_a_hostfile_are_counted(options: str, expected: tuple[int, int]):
    assert count(f"deepspeed {options} {TRAIN}", HOSTS) == expected


@pytest.mark.parametrize(
    ("launcher", "asked"),
    [
        ("deepspeed", "--gpus N"),
        ("python", "--gpus N"),
        ("torchrun --nproc_per_node gpu", "--gpus N"),
        ("torchrun --nproc_per_node $N", "--set N=VALUE"),
        ("deepspeed --num_gpus ${N}", "--set N=VALUE"),
        ("deepspeed --hostfile /job/hostfile", "--nodes N and --gpus N"),
        ("deepspeed --exclude worker-1:0", "--gpus N"),
        ("deepspeed --include worker-1", "--gpus N"),
    ],
)
def test_what_the_command_does_not_say_is_asked_for_by_its_option(launcher: str, asked: str):
    with pytest.raises(OptionMissingError) as caught:
        count(f"{launcher} {TRAIN}")
    assert asked in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [("deepspeed --include a:0,1@b:0", None), ("deepspeed --hostfile h", "a slots=8\nb slots=4")],
)
def test_pods_are_all_alike(text: str, hosts: str | None):
    with pytest.raises(TranslateError, match="pods are all alike"):
        count(f"{text} {TRAIN}", hosts)


def test_the_person_has_the_last_word():
    assert count(f"deepspeed --num_gpus 8 --num_nodes 2 {TRAIN}", gpus=4) == (2, 4)
    assert count(f"deepspeed --num_gpus 8 {TRAIN}", nodes=3) == (3, 8)
    assert count(f"deepspeed {TRAIN}", gpus=4, nodes=2) == (2, 4)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"deepspeed {TRAIN}", "train"),
        ("python llava/train/train.py --bf16", "train"),
        ("torchrun ./LLaVA/llava/train/train_xformers.py --bf16", "train"),
        ("deepspeed --module llava.train.train_mem --bf16", "train"),
        ("python scripts/merge_lora_weights.py --model-path x", "merge"),
        ("python -m llava.eval.run_llava --query x", "evaluate"),
    ],
)
def test_llavas_scripts_are_told_apart(text: str, kind: str):
    assert find(text).kind == kind


@pytest.mark.parametrize("text", ["pip install -e .", "vim llava/train/train.py", "See llava/train/train.py first."])
def test_other_commands_are_passed_over(text: str):
    assert find_launches(read_pasted(text, {}).commands) == ()


def test_an_unknown_launcher_is_named_with_those_that_are_known():
    with pytest.raises(TranslateError, match=r"line 1: mylaunch starts .* use deepspeed, torchrun"):
        find(f"mylaunch {TRAIN}")
