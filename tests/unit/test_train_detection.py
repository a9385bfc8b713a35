"""Finding objects: what the networks are taught, how proposals become boxes, and how well they fit the true ones."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dlhpc.data.samples import DONT_CARE, Batch, Boxes, join_boxes
from dlhpc.data.streets import draw, write_streets
from dlhpc.data.streets import main as streets
from dlhpc.errors import UserError
from dlhpc.runs.checkpoints import CheckpointRecord
from dlhpc.spec.models import Spec
from dlhpc.spec.network import Detection as Settings
from dlhpc.train.collective import SingleCollective
from dlhpc.train.detection.average_precision import average_precision
from dlhpc.train.detection.base import DetectionNetwork, Detections
from dlhpc.train.detection.coverage import STRIDE, coverage_targets, shrunk
from dlhpc.train.detection.detectnet import DetectNet, covered_share, typical_boxes
from dlhpc.train.detection.grouping import group_boxes
from dlhpc.train.detection.measures import Split, count, per_class, verdicts
from dlhpc.train.detection.networks import fresh_network, network_of
from dlhpc.train.detection.places import in_original
from dlhpc.train.tasks import detection
from dlhpc.train.tasks.base import BoxTensors, DeviceBatch, to_device
from tests.training import write_packed

CAR, VAN = 0, 1
TORCHVISIONS = ["ssdlite", "retinanet", "fcos"]
OPTIONS = {"detectnet": {"width": 0.1}, "retinanet": {"backbone": "resnet18"}, "fcos": {"backbone": "resnet18"}}


def boxes_of(*pictures: list[tuple[int, tuple[float, float, float, float]]]) -> Boxes:
    """Per picture: (class, corners) of each box."""
    return join_boxes(
        [
            (np.array([box for _, box in boxes], np.float32).reshape(-1, 4), np.array([k for k, _ in boxes], np.int64))
            for boxes in pictures
        ]
    )


def tensors(boxes: Boxes) -> BoxTensors:
    targets = to_device(Batch(np.zeros((len(boxes), 1)), boxes, np.arange(len(boxes))), torch.device("cpu")).targets
    assert isinstance(targets, BoxTensors)
    return targets


def targets_of(*pictures: list[tuple[int, tuple[float, float, float, float]]], classes: int = 1) -> Any:
    """On a grid of 6×8 cells, as DIGITS shrinks boxes."""
    return coverage_targets(tensors(boxes_of(*pictures)), classes, 6, 8, part=0.4, least=20.0)


def network_for(name: str, channels: int = 3, classes: int = 2, boxes: Boxes | None = None) -> DetectionNetwork:
    torch.manual_seed(1)
    given = boxes or boxes_of([(CAR, (10, 10, 60, 50)), (VAN, (20, 10, 90, 80))])
    return fresh_network(name, OPTIONS.get(name, {}), channels, classes, given, (96, 128), Settings())


# ---- What DetectNet is taught


def test_a_box_is_shrunk_about_its_centre_to_40_percent_but_20_pixels_and_never_more_than_itself() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 200], [10, 10, 50, 40], [5, 5, 17, 13]])
    assert shrunk(boxes, 0.4, 20.0).tolist() == [[30, 60, 70, 140], [20, 15, 40, 35], [5, 5, 17, 13]]


def test_every_cell_that_the_shrunk_box_touches_is_covered_and_learns_the_corners_from_its_own_top_left() -> None:
    targets = targets_of([(CAR, (10, 0, 60, 50))])  # shrunk to 25..45 × 15..35
    assert targets.coverage[0, 0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [2, 1], [2, 2]]
    assert targets.corners[0].tolist() == [10 - 16, 0, 60 - 16, 50]
    assert targets.corners[-1].tolist() == [10 - 32, 0 - 32, 60 - 32, 50 - 32]
    assert targets.shares.sum() == pytest.approx(1)
    assert targets.counted.all()


def test_dont_care_regions_take_no_part_in_the_coverage_loss_except_where_an_object_is() -> None:
    targets = targets_of([(DONT_CARE, (0, 0, 48, 16)), (CAR, (0, 0, 20, 20))], [])
    assert (~targets.counted[0]).nonzero()[:, 1:].tolist() == [[0, 2]]
    assert targets.counted[1].all()
    assert targets.coverage[1].sum() == 0


def test_a_cell_of_two_objects_belongs_to_the_one_that_it_is_the_middle_of() -> None:
    large, small = (0.0, 0.0, 128.0, 96.0), (72.0, 28.0, 104.0, 60.0)
    targets = targets_of([(CAR, large), (CAR, small)])
    picture, kind, row, column = targets.cells
    width = dict(zip(zip(row.tolist(), column.tolist()), targets.sizes[:, 0].tolist()))
    assert width[2, 5] == 32  # the small one's middle
    assert width[2, 3] == 128
    assert len(set(zip(picture.tolist(), kind.tolist(), row.tolist(), column.tolist()))) == len(row)


def test_objects_of_two_classes_may_share_a_cell() -> None:
    targets = targets_of([(CAR, (16, 16, 32, 32)), (VAN, (16, 16, 32, 32))], classes=2)
    assert targets.coverage[0, :, 1, 1].tolist() == [1, 1]


def test_pictures_without_boxes_and_boxes_without_area_teach_only_background() -> None:
    targets = targets_of([], [(CAR, (30, 30, 30, 50))])
    assert targets.coverage.sum() == 0
    assert targets.counted.all()
    assert len(targets.corners) == 0


# ---- DetectNet


def test_the_trunk_has_the_names_and_shapes_of_torchvisions_googlenet() -> None:
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False).state_dict()
    wanted = {name: value.shape for name, value in theirs.items() if not name.startswith("fc.")}
    with torch.device("meta"):
        mine = DetectNet(3, torch.ones(1, 2), Settings()).state_dict()
    heads = ("coverage.", "bboxes.", "typical")
    assert {name: value.shape for name, value in mine.items() if not name.startswith(heads)} == wanted


@pytest.mark.parametrize("size", [(96, 128), (97, 129), (65, 300), (112, 111)])
def test_any_size_gives_one_cell_for_each_16_pixels_begun(size: tuple[int, int]) -> None:
    network = network_for("detectnet").eval()
    with torch.no_grad():
        raw = network(torch.randn(1, 3, *size))
    rows, columns = -(-size[0] // STRIDE), -(-size[1] // STRIDE)
    assert raw["coverage"].shape == (1, 2, rows, columns)
    assert raw["bboxes"].shape == (1, 2, 4, rows, columns)


def test_an_untrained_network_begins_with_the_typical_box_and_the_usual_coverage() -> None:
    boxes = boxes_of([(CAR, (0, 0, 40, 30)), (CAR, (0, 0, 90, 30))])
    typical = typical_boxes(boxes, 2)
    assert typical.tolist() == [pytest.approx([60, 30], rel=1e-5), [64, 64]]
    share = covered_share(boxes, 2, (96, 128), Settings())
    network = DetectNet(3, typical, Settings(), width=0.1, covered=share).eval()
    torch.nn.init.zeros_(network.bboxes.weight)
    torch.nn.init.zeros_(network.coverage.weight)
    with torch.no_grad():
        raw = network(torch.randn(1, 3, 96, 128))
    assert raw["bboxes"][0, 0, :, 2, 3].tolist() == pytest.approx([8 - 30, 8 - 15, 8 + 30, 8 + 15], abs=1e-3)
    assert raw["coverage"].sigmoid().mean().item() == pytest.approx(share, rel=1e-4)


def truthful(network: DetectNet, boxes: Boxes, size: tuple[int, int]) -> dict[str, Tensor]:
    """What a perfect network would say."""
    rows, columns = -(-size[0] // STRIDE), -(-size[1] // STRIDE)
    settings = network.settings
    targets = coverage_targets(
        tensors(boxes), len(network.typical), rows, columns, part=settings.shrink, least=settings.min_covered
    )
    bboxes = torch.zeros(len(boxes), len(network.typical), 4, rows, columns)
    picture, kind, row, column = targets.cells
    bboxes[picture, kind, :, row, column] = targets.corners
    return {"coverage": torch.where(targets.coverage > 0, 4.0, -4.0), "bboxes": bboxes}


def test_what_is_taught_is_decoded_to_the_same_boxes() -> None:
    network = network_for("detectnet")
    assert isinstance(network, DetectNet)
    boxes = boxes_of([(CAR, (10.5, 20, 70, 60.25)), (VAN, (60, 8, 128, 92))], [], [(CAR, (0, 0, 30, 28))])
    found = network.detections(truthful(network, boxes, (96, 128)), (96, 128))
    assert [len(one) for one in found] == [2, 0, 1]
    assert found[0].corners[found[0].classes == CAR][0].tolist() == pytest.approx([10.5, 20, 70, 60.25])
    assert found[0].scores.tolist() == pytest.approx([torch.tensor(4.0).sigmoid().item()] * 2)
    assert network.losses(truthful(network, boxes, (96, 128)), tensors(boxes), (96, 128))[0] == pytest.approx(0)


def test_low_boxes_are_not_reported() -> None:
    network = network_for("detectnet")
    assert isinstance(network, DetectNet)
    boxes = boxes_of([(CAR, (10, 20, 90, 41))])
    assert len(network.detections(truthful(network, boxes, (96, 128)), (96, 128))[0]) == 0
    network.settings = Settings(min_height=20)
    assert len(network.detections(truthful(network, boxes, (96, 128)), (96, 128))[0]) == 1


def test_the_losses_are_those_of_nvidias_network() -> None:
    network = network_for("detectnet")
    assert isinstance(network, DetectNet)
    boxes = boxes_of([(CAR, (16, 16, 66, 56))])  # 50×40
    raw = truthful(network, boxes, (96, 128))
    raw["bboxes"] = raw["bboxes"] + 10.0
    bbox, coverage = network.losses(raw, tensors(boxes), (96, 128)).tolist()
    assert bbox == pytest.approx(2 * 10 / 50 + 2 * 10 / 40)  # however many cells the object has
    wrong = torch.tensor(-4.0).sigmoid().item()
    assert coverage == pytest.approx(0.5 * 2 * 6 * 8 * wrong**2, rel=1e-4)


# ---- Grouping


def corners_of(rectangles: list[list[int]]) -> np.ndarray:
    """OpenCV's left, top, width, height as corners."""
    values = np.array(rectangles, np.float32)
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)


def test_proposals_are_grouped_as_opencv_groups_them() -> None:
    """What ``cv2.groupRectangles(…, 3, 0.2)`` of OpenCV 4.14 answers; OpenCV 5 has this function no more."""
    proposals = [
        [177, 134, 33, 80], [175, 135, 32, 77], [177, 132, 35, 78], [169, 133, 35, 76], [169, 136, 34, 79],
        [108, 68, 28, 24], [112, 67, 31, 22], [108, 65, 28, 28], [112, 69, 30, 27], [114, 67, 32, 30],
        [115, 72, 31, 28], [116, 69, 35, 28], [72, 28, 71, 50], [75, 26, 67, 46], [75, 29, 73, 43], [79, 27, 68, 49],
        [76, 25, 67, 49], [76, 27, 68, 49], [74, 25, 73, 45], [29, 18, 34, 72], [32, 25, 33, 67], [36, 25, 31, 65],
        [35, 21, 36, 66], [36, 22, 39, 72],
    ]  # fmt: skip
    answer = [[173, 134, 34, 78], [114, 69, 32, 28], [75, 27, 70, 47], [34, 22, 35, 68]]
    mine = group_boxes(corners_of(proposals), np.ones(len(proposals), np.float32), 3, 0.2)
    assert mine.members.tolist() == [5, 4, 7, 5]
    assert np.allclose(mine.corners, corners_of(answer), atol=1)  # OpenCV's are whole pixels


@pytest.mark.skipif(not hasattr(cv2, "groupRectangles"), reason="OpenCV 5 has it no more")
@pytest.mark.parametrize("seed", range(8))
def test_where_opencv_still_groups_rectangles_it_agrees(seed: int) -> None:
    random = np.random.default_rng(seed)
    proposals = []
    for x, y in random.integers(20, 200, (6, 2)).tolist():
        width, height = random.integers(20, 90, 2).tolist()
        for _ in range(int(random.integers(1, 9))):
            dx, dy, dw, dh = random.integers(-4, 5, 4).tolist()
            proposals.append([x + dx, y + dy, width + dw, height + dh])
    theirs, weights = cv2.groupRectangles(proposals, 3, 0.2)
    mine = group_boxes(corners_of(proposals), np.ones(len(proposals), np.float32), 3, 0.2)
    assert mine.members.tolist() == np.array(weights).flatten().tolist()
    assert np.allclose(mine.corners, corners_of(np.array(theirs).tolist()), atol=1)


def test_a_weak_group_inside_a_strong_one_falls_away() -> None:
    outer, inner = [[0, 0, 100, 100]] * 9, [[30, 30, 40, 40]] * 4
    groups = group_boxes(corners_of(outer + inner), np.ones(13, np.float32), 3, 0.2)
    assert groups.members.tolist() == [9]


def test_threshold_0_takes_each_proposal() -> None:
    corners = np.array([[0, 0, 10, 10]] * 3, np.float32)
    assert len(group_boxes(corners, np.ones(3, np.float32), 0, 0.2).members) == 3


def test_chains_of_similar_boxes_are_one_group() -> None:
    corners = np.array([[step, 0, 40 + step, 40] for step in (0, 6, 12, 18)], np.float32)
    groups = group_boxes(corners, np.array([0.6, 0.7, 0.8, 0.9], np.float32), 3, 0.2)
    assert groups.corners.tolist() == [[9, 0, 49, 40]]
    assert groups.confidence.tolist() == pytest.approx([0.75])


# ---- How well it fits


def split_of(
    true: list[tuple[int, int, tuple[float, float, float, float]]],
    found: list[tuple[int, int, tuple[float, float, float, float], float]],
    pictures: int = 2,
) -> Split:
    """(picture, class, corners) and (picture, class, corners, score)."""
    return Split(
        pictures, np.array([t[0] for t in true], np.int64), np.array([t[1] for t in true], np.int64),
        np.array([t[2] for t in true], float).reshape(-1, 4), np.array([f[0] for f in found], np.int64),
        np.array([f[1] for f in found], np.int64), np.array([f[2] for f in found], float).reshape(-1, 4),
        np.array([f[3] for f in found], float),
    )  # fmt: skip


HERE, THERE, FAR = (0.0, 0.0, 100.0, 50.0), (200.0, 0.0, 300.0, 50.0), (0.0, 100.0, 90.0, 150.0)


def test_the_surest_detection_takes_the_true_box_and_a_second_one_is_wrong() -> None:
    near = (5.0, 0.0, 105.0, 50.0)
    split = split_of([(0, CAR, HERE), (0, CAR, THERE)], [(0, CAR, near, 0.7), (0, CAR, HERE, 0.9), (1, CAR, HERE, 0.8)])
    verdict = verdicts(split, 0.7)
    assert verdict.tolist() == [0, 1, 0]
    counts = count(split, verdict)
    assert (counts.precision, counts.recall) == (pytest.approx(1 / 3), 0.5)
    assert counts.digits_map == pytest.approx(1 / 6)


def test_detections_in_regions_that_do_not_count_are_neither_right_nor_wrong() -> None:
    region = (0.0, 90.0, 100.0, 160.0)
    split = split_of([(0, CAR, HERE), (0, DONT_CARE, region)], [(0, CAR, HERE, 0.9), (0, CAR, FAR, 0.95)])
    counts = count(split, verdicts(split, 0.7))
    assert (counts.true, counts.right, counts.wrong) == (1, 1, 0)
    assert average_precision(split, 1).ap == pytest.approx(1.0)


def test_another_class_is_another_matter() -> None:
    split = split_of([(0, CAR, HERE), (1, VAN, HERE)], [(0, VAN, HERE, 0.9), (1, VAN, HERE, 0.8)])
    rows = per_class(split, verdicts(split, 0.5), ["Car", "Van"])
    assert [(row["class"], row["precision"], row["recall"]) for row in rows] == [("Car", 0, 0), ("Van", 0.5, 1)]
    precise = average_precision(split, 2)
    assert precise.by_class == [(0, 0, 0), pytest.approx((0.5, 0.5, 0.5))]
    assert precise.ap50 == pytest.approx(0.25)


def test_average_precision_asks_for_a_better_fit_at_75() -> None:
    split = split_of([(0, CAR, HERE)], [(0, CAR, (0.0, 0.0, 100.0, 32.0), 0.9)])  # overlap 0.64
    precise = average_precision(split, 1)
    assert (precise.ap50, precise.ap75, precise.ap) == pytest.approx((1, 0, 0.3))


def test_nothing_found_and_nothing_there() -> None:
    assert average_precision(split_of([(0, CAR, HERE)], []), 1).ap50 == 0
    nothing = average_precision(split_of([], [(0, CAR, HERE, 0.9)]), 1)
    assert (nothing.ap50, nothing.by_class) == (0, [None])
    empty = split_of([], [])
    assert count(empty, verdicts(empty, 0.5)).precision == 0


def test_the_curve_falls_from_the_surest_detection_on_and_has_a_bounded_length() -> None:
    random = np.random.default_rng(1)
    true = [(picture, CAR, HERE) for picture in range(300)]
    found = [(picture, CAR, HERE if random.random() < 0.7 else THERE, float(random.random())) for picture in range(300)]
    split = split_of(true, found, pictures=300)
    (row,) = per_class(split, verdicts(split, 0.5), ["Car"])
    precisions = [point["precision"] for point in row["curve"]]
    assert len(precisions) <= 101
    assert precisions == sorted(precisions, reverse=True)
    assert row["curve"][-1]["recall"] == pytest.approx(row["recall"], abs=0.011)


def test_without_pycocotools_training_does_not_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(UserError, match="average precision needs pycocotools"):
        detection.make(*spec_and_packed(tmp_path, "detectnet"))


# ---- Torchvision's networks


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_losses_of_a_batch_are_the_sum_of_those_of_its_pictures(name: str) -> None:
    network = network_for(name).eval()
    boxes = boxes_of([(CAR, (10, 10, 60, 50)), (DONT_CARE, (70, 10, 128, 60))], [], [(VAN, (20, 30, 100, 90))])
    pictures = torch.randn(3, 3, 96, 128)
    with torch.no_grad():
        raw = network(pictures)
        together = network.losses(raw, tensors(boxes), (96, 128))
        apart = [
            network.losses(
                {key: value[n : n + 1] for key, value in raw.items()}, tensors(boxes.take(np.array([n]))), (96, 128)
            )
            for n in range(3)
        ]
    assert torch.isfinite(together).all()
    assert torch.allclose(together, torch.stack(apart).sum(dim=0))


@pytest.mark.parametrize("name", ["detectnet", *TORCHVISIONS])
def test_every_weight_learns(name: str) -> None:
    network = network_for(name, channels=1)
    boxes = boxes_of([(CAR, (10, 10, 60, 50))], [(VAN, (20, 10, 90, 80)), (DONT_CARE, (100, 0, 128, 40))])
    network.losses(network(torch.randn(2, 1, 96, 128)), tensors(boxes), (96, 128)).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_a_picture_that_is_all_dont_care_teaches_nothing(name: str) -> None:
    network = network_for(name).eval()
    with torch.no_grad():
        raw = network(torch.randn(1, 3, 96, 128))
        everywhere = (-500.0, -500.0, 900.0, 900.0)
        ignored = network.losses(raw, tensors(boxes_of([(DONT_CARE, everywhere)])), (96, 128))
        background = network.losses(raw, tensors(boxes_of([])), (96, 128))
    assert ignored.tolist() == [0] * len(network.loss_names)
    assert background[network.loss_names.index("class")] > 0


def test_ssdlite_takes_no_negatives_from_regions_that_do_not_count() -> None:
    network = network_for("ssdlite").eval()
    car = (CAR, (10.0, 10.0, 60.0, 50.0))
    with torch.no_grad():
        raw = network(torch.randn(1, 3, 96, 128))
        anchors = network.anchors(raw, (96, 128))
        region = (70.0, 0.0, 128.0, 96.0)
        inside = (anchors[:, 0] >= 70) & (anchors[:, 2] <= 128)
        raw["cls_logits"][0, inside] = torch.tensor([-9.0, 9.0, 0.0])  # sure to see cars there
        wrong = network.losses(raw, tensors(boxes_of([car])), (96, 128))
        ignored = network.losses(raw, tensors(boxes_of([car, (DONT_CARE, region)])), (96, 128))
    assert inside.any()
    assert ignored[1] < wrong[1] / 2


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_what_is_found_lies_in_the_picture_and_the_surest_comes_first(name: str) -> None:
    network = network_for(name).eval()
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d) and part.bias is not None:
            torch.nn.init.normal_(part.bias, std=0.3)
    with torch.no_grad():
        found = network.detections(network(torch.randn(2, 3, 97, 131)), (97, 131))
    assert len(found) == 2
    for one in found:
        assert 0 < len(one) <= 100
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert one.corners.min() >= 0
        assert (one.corners.amax(dim=0) <= torch.tensor([131, 97, 131, 97])).all()
        assert set(one.classes.tolist()) <= {CAR, VAN}


@pytest.mark.parametrize("name", ["detectnet", *TORCHVISIONS])
def test_a_network_is_restored_from_its_weights(name: str) -> None:
    tiny = boxes_of([(CAR, (10, 10, 19, 19)), (VAN, (20, 10, 30, 21))])
    network = network_for(name, boxes=tiny).eval()
    settings = Settings()
    again = network_of(name, OPTIONS.get(name, {}), 3, 2, settings, network.state_dict()).eval()
    pictures = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        one, other = network(pictures), again(pictures)
    assert all(torch.equal(one[key], other[key]) for key in one)
    if name != "detectnet":
        assert torch.equal(network.anchors(one, (96, 128)), again.anchors(other, (96, 128)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("detectnet", {"width": "narrow"}, "width"),
        ("detectnet", {"breadth": 1}, "no option breadth"),
        ("fcos", {"backbone": "vgg16"}, "backbone"),
        ("ssdlite", {"width": 0.5}, "no option width"),
    ],
)
def test_options_that_a_network_does_not_have(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fresh_network(name, options, 3, 1, boxes_of([]), (96, 128), Settings())


# ---- The task


def spec_and_packed(folder: Path, name: str, channels: int = 3, **detection_settings: Any) -> tuple[Spec, Any]:
    """Bright rectangles on noise: 12 pictures to train on and 5 to validate."""
    random = np.random.default_rng(3)

    def pictures(count: int) -> tuple[np.ndarray, Boxes]:
        values = random.integers(0, 90, (count, channels, 96, 128)).astype(np.uint8)
        rows = []
        for number in range(count):
            left, top = random.integers(0, 60), random.integers(0, 40)
            right, bottom = left + random.integers(30, 60), top + random.integers(28, 50)
            values[number, :, top:bottom, left:right] += 140
            rows.append([(CAR, (left, top, right, bottom)), (DONT_CARE, (100, 70, 128, 96))])
        return values, boxes_of(*rows)

    packed = write_packed(folder / "packed", {"train": pictures(12), "val": pictures(5)}, ["Car"], task="detection")
    spec = Spec.model_validate(
        {
            "name": "cars",
            "task": "detection",
            "data": {"kitti": {"images": "/x", "labels": "/y"}, "width": 128, "height": 96},
            "network": {"name": name, "options": OPTIONS.get(name, {})},
            "detection": detection_settings,
        }
    )
    return spec, packed


def batch_of(packed: Any, split: str, numbers: list[int]) -> DeviceBatch:
    indices = np.array(numbers, np.int64)
    inputs = np.zeros((len(numbers), packed.channels, packed.height, packed.width), packed.dtype)
    packed.read(split, indices, inputs)
    return to_device(Batch(inputs, packed.targets(split).take(indices), indices), torch.device("cpu"))


def test_a_network_learns_and_is_restored_from_a_checkpoint(tmp_path: Path) -> None:
    spec, packed = spec_and_packed(tmp_path, "detectnet")
    torch.manual_seed(0)
    task = detection.make(spec, packed)
    assert task.train_sums == ("loss", "loss_bbox", "loss_coverage")
    optimiser = torch.optim.Adam(task.model.parameters(), lr=4e-3)
    everything = batch_of(packed, "train", list(range(12)))
    course = []
    for _ in range(20):
        optimiser.zero_grad()
        losses = task.losses(everything)
        (losses.total / 12).backward()
        optimiser.step()
        course.append(task.train_metrics(losses.sums.tolist(), 12))
    assert course[-1]["loss"] == pytest.approx(2 * course[-1]["loss_bbox"] + course[-1]["loss_coverage"], rel=1e-5)
    assert course[-1]["loss_coverage"] < 0.7 * course[0]["loss_coverage"]
    found = evaluated(task, packed, [[0, 1], [2, 3], [4]])
    assert found.details["counts"]["dont_care_regions"] == 5
    assert {"loss", "loss_bbox", "precision", "recall", "digits_map", "ap", "ap50", "ap75"} <= set(found.metrics)

    weights = task.model.state_dict()
    settings = {"network": spec.network.model_dump(), "detection": spec.detection.model_dump()}
    record = CheckpointRecord(
        "step-1", tmp_path, 1, 1, 0, {}, "detection", ["Car"], "detectnet", settings,
        {"channels": 3, "height": 96, "width": 128}, None, None, None, {},  # type: ignore[arg-type]
    )  # fmt: skip
    restored = detection.restore(record, weights).eval()
    inputs = batch_of(packed, "val", [0, 1]).inputs
    for mine, theirs in zip(detection.detect(restored, inputs), detection.detect(task.model.eval(), inputs)):
        assert isinstance(mine, Detections)
        assert torch.equal(mine.corners, theirs.corners)
        assert torch.equal(mine.scores, theirs.scores)


@torch.no_grad()
def evaluated(task: Any, packed: Any, batches: list[list[int]], collective: Any = None) -> Any:
    task.model.eval()
    measure = task.measure()
    for numbers in batches:
        measure.add(batch_of(packed, "val", numbers))
    return measure.finish(collective or SingleCollective())


class _Together:
    """Three threads that stand in for three ranks."""

    def __init__(self, size: int) -> None:
        self.size, self._barrier, self._slots = size, threading.Barrier(size), [None] * size

    def rank(self, number: int) -> Any:
        together = self

        class Rank:
            rank, size = number, together.size

            def _all(self, value: Any) -> list[Any]:
                together._slots[number] = value
                together._barrier.wait(30)
                values = list(together._slots)
                together._barrier.wait(30)
                return values

            def gather(self, tensor: Tensor) -> Tensor:
                return torch.stack(self._all(tensor.clone()))

            def sum(self, tensor: Tensor) -> Tensor:
                return tensor.copy_(torch.stack(self._all(tensor.clone())).sum(dim=0))

            def share_json(self, value: Any) -> Any:
                return self._all(value)[0]

        return Rank()


def test_ranks_measure_together_what_one_measures_alone(tmp_path: Path) -> None:
    spec, packed = spec_and_packed(tmp_path, "detectnet", coverage=0.05, group_threshold=0)
    torch.manual_seed(0)
    task = detection.make(spec, packed)
    for head in (task.model.network.bboxes, task.model.network.coverage):
        torch.nn.init.zeros_(head.weight)  # every cell proposes the typical box, and all are equally sure
    alone = evaluated(task, packed, [[0, 1, 2, 3, 4]])
    together, found = _Together(3), {}

    def one(rank: int) -> None:
        found[rank] = evaluated(task, packed, [list(range(rank, 5, 3))], together.rank(rank))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone.details["counts"]["wrong"] + alone.details["counts"]["right"] > 0
    for rank in range(3):
        assert found[rank].metrics == pytest.approx(alone.metrics, rel=1e-6)
        assert found[rank].details == alone.details


def test_half_precision_changes_the_layers_but_not_the_losses(tmp_path: Path) -> None:
    task = detection.make(*spec_and_packed(tmp_path, "detectnet"))
    batch = batch_of(spec_and_packed(tmp_path / "b", "detectnet")[1], "train", [0, 1, 2])
    plain = task.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = task.losses(batch)
    assert half.total.dtype == torch.float32
    assert half.sums.tolist() == pytest.approx(plain.sums.tolist(), rel=0.05)


def test_a_users_own_network_is_refused_kindly(tmp_path: Path) -> None:
    spec, packed = spec_and_packed(tmp_path, "detectnet")
    own = spec.model_copy(update={"network": spec.network.model_copy(update={"file": "mine.py"})})
    with pytest.raises(UserError, match="not for task detection"):
        detection.make(own, packed)


# ---- Back to the picture as the user has it


@pytest.mark.parametrize("resize", ["squash", "crop", "fill", "half_crop", "pad"])
def test_boxes_return_to_where_they_were_in_the_original(resize: Any) -> None:
    from dlhpc.data.boxes import boxes_in_frame
    from dlhpc.data.pictures import window

    original, packed = (375, 1242), (96, 320)
    given = [[CAR, 500.0, 120.0, 700.0, 260.0]]
    frame = window(*original, *packed, resize)
    moved, _ = boxes_in_frame(given, *original, frame, "x.png", ["Car"])
    assert in_original(moved, packed, packed, original, resize)[0].tolist() == pytest.approx(given[0][1:], abs=1.0)


def test_a_centre_crop_is_undone() -> None:
    found = in_original(np.array([[0, 0, 20, 10]], np.float32), (80, 300), (96, 320), (192, 640), "squash")
    assert found.tolist() == [[20, 16, 60, 36]]


# ---- Streets


def test_the_same_seed_gives_the_same_streets_and_longer_sets_begin_with_shorter_ones(tmp_path: Path) -> None:
    write_streets(tmp_path / "a", 3, seed=4, width=160, height=64)
    write_streets(tmp_path / "b", 2, seed=4, width=160, height=64)
    for name in ("images/000001.png", "labels/000001.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not np.array_equal(draw(4, 0, 160, 64).picture, draw(5, 0, 160, 64).picture)


def test_labels_are_those_of_kitti() -> None:
    kinds = set()
    for number in range(12):
        street = draw(1, number)
        assert street.picture.shape == (96, 320, 3)
        for line in street.labels:
            columns = line.split()
            assert len(columns) == 15
            kinds.add(columns[0])
            left, top, right, bottom = (float(value) for value in columns[4:8])
            assert 0 <= left < right <= 320
            assert 0 <= top < bottom <= 96
            if columns[0] != "DontCare":
                assert bottom - top >= 12
                assert 0 <= float(columns[1]) <= 0.85
                assert columns[2] in ("0", "1", "2")
    assert kinds == {"Car", "Van", "Pedestrian", "DontCare"}


def test_streets_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert streets([str(tmp_path / "s"), "--count", "2", "--width", "128", "--height", "64"]) == 0
    assert "2 pictures of 128×64" in capsys.readouterr().out
    assert len(list((tmp_path / "s" / "labels").iterdir())) == 2
    assert streets([str(tmp_path / "s"), "--count", "0"]) == 2
    (tmp_path / "file").touch()
    assert streets([str(tmp_path / "file"), "--count", "1"]) == 1
    assert "Traceback" not in capsys.readouterr().err
