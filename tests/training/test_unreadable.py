"""Images that cannot be read: refused in evaluation, replaced and counted in training."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch
from PIL import Image
from training.training_setup import RATE, SPACE, train_config

from growtas.base import distributed
from growtas.schedule import Uniform
from growtas.supernet import Supernet
from growtas.training import AugmentConfig, DataConfig, Trainer, build_data
from growtas.training.batches import WorkerDied, left_out
from growtas.training.metrics import read_metrics
from growtas.training.samples import UnreadableImage, split_indices

SPLIT = split_indices(40, 0.2)
SEARCHED, TESTED, TRAINED = 60, 120, 200  # how bright the images of each split are


def write(folder) -> None:
    for number, label in enumerate(("cat", "dog")):
        for split in ("train", "val"):
            (folder / split / label).mkdir(parents=True)
        for index in range(20):
            own = SEARCHED if 20 * number + index in SPLIT["search"] else TRAINED
            for split, brightness in (("train", own), ("val", TESTED)):
                image = Image.new("L", (12, 12), brightness)
                image.save(folder / split / label / f"{index:02}.png")


def break_images(folder, split: str, numbers: range) -> list[str]:
    """Cuts images of the class cat off; their paths."""
    paths = [folder / split / "cat" / f"{number:02}.png" for number in numbers]
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    return [str(path) for path in paths]


def data_of(folder, **settings):
    values = {"dataset": "", "root": str(folder), "in_chans": 1, "batch_size": 8, "workers": 0}
    values |= {"image_size": 8, "search_fraction": 0.2}
    return build_data(DataConfig(**{**values, **settings}), AugmentConfig.off())


def trainer(folder, run_dir, **settings) -> Trainer:
    torch.manual_seed(0)
    model = Supernet(SPACE, image_size=8, patch_size=4, num_classes=2, in_chans=1)
    data = data_of(folder, **settings)
    said: list[str] = []
    run = Trainer(
        model, Uniform(), data, train_config(epochs=2), run_dir, optim=RATE, say=said.append
    )
    run.said = said
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_in_evaluation_an_unreadable_image_is_an_error_that_names_it(tmp_path, workers):
    write(tmp_path)
    (path,) = break_images(tmp_path, "val", range(3, 4))
    data = data_of(tmp_path, workers=workers)
    message = rf"^cannot read {path}: [^<\n]*skip_unreadable=true [^\n]*$"
    with pytest.raises(UnreadableImage, match=message):
        list(data.eval_loader("test"))
    with pytest.raises(UnreadableImage, match=path):
        [data.test[i] for i in range(len(data.test))]


@pytest.mark.parametrize("workers", [0, 2])
def test_on_request_unreadable_images_are_left_out_and_counted(tmp_path, workers):
    write(tmp_path)
    paths = break_images(tmp_path, "val", range(3, 8))
    data = data_of(tmp_path, workers=workers, skip_unreadable=True, eval_batch_size=4)
    loader = data.eval_loader("test")
    batches = list(loader)
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == [15, 20]
    assert all(len(images) == len(labels) > 0 for images, labels in batches)
    line = left_out("test", loader)
    assert (
        line == f"5 of 40 test images cannot be read and are left out: {', '.join(paths[:3])}, ..."
    )
    assert left_out("train", data.eval_loader("train")) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_unreadable_images_are_replaced_and_reported(tmp_path, workers):
    write(tmp_path)
    broken = [index for index in SPLIT["train"] if index < 20][:3]
    paths = [break_images(tmp_path, "train", range(i, i + 1))[0] for i in broken]
    run = trainer(tmp_path, tmp_path / "run", workers=workers)
    seen = torch.cat([images.flatten(1) for images, _ in run.loader])
    assert len(seen) == run.steps_per_epoch * 8
    assert seen.unique().tolist() == pytest.approx([(TRAINED / 255 - 0.5) / 0.5])
    run.fit()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    # An epoch of 24 images leaves some of the training images out, maybe broken ones.
    assert len(rows) == 2
    for row in rows:
        line = next(line for line in run.said if line.startswith(f"epoch {row['epoch']}: "))
        assert 1 <= row["unreadable"] <= 3
        assert f"{row['unreadable']} training images cannot be read" in line
        assert any(path in line for path in paths)


def test_nothing_is_reported_where_all_can_be_read(tmp_path):
    write(tmp_path)
    run = trainer(tmp_path, tmp_path / "run")
    run.fit()
    assert [row["unreadable"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 0]
    assert run.said == []


def test_search_batches_of_a_step_follow_the_same_rule(tmp_path):
    write(tmp_path)
    broken = [index for index in SPLIT["search"] if index < 20]
    for index in broken:
        break_images(tmp_path, "train", range(index, index + 1))
    process = distributed.start("cpu")
    settings = {"batch_size": 40}  # all of them
    with pytest.raises(UnreadableImage, match=r"cannot read .*/train/cat/"):
        data_of(tmp_path, **settings).search_batch(0, 0, process)
    data = data_of(tmp_path, skip_unreadable=True, **settings)
    images, labels = data.search_batch(0, 0, process)
    assert len(images) == len(labels) == len(SPLIT["search"]) - len(broken)
    assert set(labels.tolist()) == {1}


def test_ten_in_a_row_end_the_training_with_one_line(tmp_path):
    write(tmp_path)
    break_images(tmp_path, "train", range(20))
    with pytest.raises(UnreadableImage, match=r"^10 images in a row cannot be read; .*\.png: .+$"):
        trainer(tmp_path, tmp_path / "run", workers=2).fit()


def test_a_folder_that_vanishes_is_named(tmp_path):
    write(tmp_path / "data")
    run = trainer(tmp_path / "data", tmp_path / "run")
    shutil.rmtree(tmp_path / "data" / "train")
    with pytest.raises(UnreadableImage, match=r"train/.*\.png: No such file or directory$"):
        run.fit()


def test_a_file_cut_off_in_the_middle_is_found_out(tmp_path):
    """It opens; only decoding shows it."""
    write(tmp_path)
    path = tmp_path / "val" / "cat" / "03.png"
    noise = torch.randint(0, 256, (64, 64), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableImage, match=r"03\.png"):
        list(data_of(tmp_path).eval_loader("test"))


@pytest.mark.parametrize("split", ["train", "search"])
def test_a_lack_of_memory_is_no_damaged_image(tmp_path, split):
    write(tmp_path)
    data = data_of(tmp_path)

    def fail(stream):
        raise MemoryError

    getattr(data, split).dataset._open = fail
    with pytest.raises(MemoryError):
        list(data.train_loader() if split == "train" else data.eval_loader(split))


class Dying(torch.utils.data.Dataset):
    """Ends the process that reads it."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1, 8, 8), 0


def test_a_dead_worker_is_one_line():
    config = DataConfig("own", num_classes=2, workers=1, batch_size=8)
    data = build_data(config, AugmentConfig.off(), train=Dying())
    with pytest.raises(WorkerDied, match=r"^a process that reads images has died: [^\n]*workers"):
        list(data.eval_loader("train"))


def test_a_folder_without_images_is_one_line(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images of data set '', split 'train' in .*train: "):
        data_of(tmp_path)
    with pytest.raises(ValueError, match=r"no images of data set 'torch/nothing'"):
        data_of(tmp_path, dataset="torch/nothing")
    (tmp_path / "all.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match=r"no images of data set '', split 'train' in .*all\.tar"):
        data_of(tmp_path / "all.tar", test_split=None)
