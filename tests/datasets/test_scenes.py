from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shapely import affinity
from shapely.geometry import box as shapely_box

from cakdp_ext.config import ConfigError
from cakdp_ext.datasets import make_infos
from cakdp_ext.datasets.scenes import (
    FrameGenerator,
    LidarConfig,
    SceneConfig,
    StreetConfig,
    TrafficConfig,
    read_scene_config,
    write_scenes,
)
from cakdp_ext.datasets.scenes import writer as writer_module
from cakdp_ext.datasets.scenes.labels import label_objects, occlusion_level
from cakdp_ext.datasets.scenes.lidar import Lidar
from cakdp_ext.datasets.scenes.scene import Ground, Part, Scene, SceneObject, placed_parts
from cakdp_ext.datasets.scenes.shapes import column, cuboid, ellipsoid, extrusion, frustum, limb, yaw_matrix
from cakdp_ext.datasets.scenes.street import Footprints
from cakdp_ext.datasets.scenes.traffic import MODELS

PROJECT = Path(__file__).resolve().parents[2]
QUIET = LidarConfig(beams=24, azimuth_step=0.6, range_noise=0.0, intensity_noise=0.0, dropout=0.0)
TINY = SceneConfig(
    num_train=3,
    num_val=2,
    lidar=replace(QUIET, range_noise=0.02, dropout=0.04),
    traffic=TrafficConfig(cars=(4, 6), pedestrians=(3, 5), cyclists=(2, 4), vans=(1, 1), misc=(1, 1)),
)
NO_TRAFFIC = TrafficConfig(cars=(0, 0), pedestrians=(0, 0), cyclists=(0, 0), vans=(0, 0), misc=(0, 0), far_cars=(0, 0))
FLAT = Ground(np.array((0.0, 0.0, 1.0)), 1.73, np.zeros((0, 4)))


def rng(seed=0):
    return np.random.default_rng(seed)


def scene_of(objects, clutter=(), ground=FLAT):
    return Scene(ground, lambda x, y: np.full(x.shape, 0.2), tuple(objects), tuple(clutter))


def thing(name, x, y, heading=0.0, size=None, seed=0):
    model = MODELS[name]
    size = model.mean if size is None else size
    parts = placed_parts(model.build(size, rng(seed)), np.array((x, y, -1.73)), heading)
    return SceneObject(name, np.array((x, y, -1.73 + size[2] / 2, *size, heading)), parts)


def wall(x, y, width, height=6.0):
    return Part(cuboid((x, y, -1.73 + height / 2), (0.2, width, height)), 0.5)


def in_box_frame(points, box):
    return (points - box[:3]) @ yaw_matrix(box[6])


def numbers(text):
    return np.array(text.split(), dtype=float)


def calibration_of(text):
    entries = dict(line.split(": ") for line in text.strip().splitlines())
    matrices = {name: numbers(row).reshape(3, -1) for name, row in entries.items()}
    to_rect = np.eye(4)
    to_rect[:3] = matrices["R0_rect"] @ matrices["Tr_velo_to_cam"]
    return matrices, to_rect


def labels_of(text):
    rows = [line.split(" ") for line in text.strip().splitlines()]
    return [(row[0], np.array(row[1:], dtype=float)) for row in rows]


def moved(points, transform):
    return points @ transform[:3, :3].T + transform[:3, 3]


def kitti_corners(values):
    """Corners in the rectified camera frame as KITTI's development kit describes them, the four front ones first."""
    height, width, length = values[7:10]
    x = np.array([1, 1, 1, 1, -1, -1, -1, -1]) * length / 2
    y = np.array([0, 0, -1, -1, 0, 0, -1, -1]) * height
    z = np.array([1, -1, 1, -1, 1, -1, 1, -1]) * width / 2
    c, s = np.cos(values[13]), np.sin(values[13])
    return np.stack((c * x + s * z, y, -s * x + c * z), axis=1) + values[10:13]


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def quiet_frames():
    generator = FrameGenerator(replace(TINY, lidar=replace(QUIET, beams=48, azimuth_step=0.3)))
    frames = [generator.generate(index) for index in range(6)]
    return [(frame, {k: v for k, v in generator.files(frame).items()}) for frame in frames]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "set"
    summary = write_scenes(TINY, out, progress=False)
    return out, summary


# Rays and solids


def test_box_cast_equals_the_slab_intersection():
    directions = Lidar(replace(QUIET, field_of_view=360.0, azimuth_step=3.0)).directions
    for seed in range(20):
        draw = rng(seed)
        center, size, yaw = draw.uniform(-12, 12, 3) * (1, 1, 0.2), draw.uniform(0.5, 6, 3), draw.uniform(-4, 4)
        enter, leave = cuboid((0, 0, 0), size).placed(yaw_matrix(yaw), center).intersect(directions)
        origin = yaw_matrix(yaw).T @ -center
        rays = np.einsum("ji,j...->...i", yaw_matrix(yaw), directions)
        first, second = (-size / 2 - origin) / rays, (size / 2 - origin) / rays
        slab_in, slab_out = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        hit = (slab_in <= slab_out) & (slab_in > 0)
        np.testing.assert_allclose(enter, np.where(hit, slab_in, np.inf), rtol=1e-9)
        np.testing.assert_allclose(leave, np.where(hit, slab_out, np.inf), rtol=1e-9)


@pytest.mark.parametrize(
    "shape",
    [ellipsoid((0, 0, 0), (0.3, 0.5, 0.9)), limb((0, 0.2, -0.5), (0.9, -0.1, 0.6), 0.2, 0.35)],
    ids=["upright", "slanting limb"],
)
def test_ellipsoid_cast_equals_a_walk_along_the_ray(shape):
    directions = Lidar(replace(QUIET, beams=20, azimuth_step=1.0, field_of_view=30.0)).directions
    solid = shape.placed(yaw_matrix(0.7), np.array((5.0, 0.4, -0.6)))
    enter, leave = solid.intersect(directions)
    steps = np.arange(3.0, 8.0, 0.005)
    along = np.einsum("i...,t->...ti", directions, steps) - solid.center
    inside = np.sum(np.linalg.solve(solid.half_axes, along[..., None])[..., 0] ** 2, axis=-1) <= 1
    hit = inside.any(-1)
    assert hit.sum() > 20
    assert np.isfinite(enter[hit]).all()
    np.testing.assert_allclose(enter[hit], steps[inside.argmax(-1)][hit], atol=0.0051)
    np.testing.assert_allclose(leave[hit] - enter[hit], inside.sum(-1)[hit] * 0.005, atol=0.0051)


def test_columns_and_extrusions_are_as_thick_as_asked():
    rays = np.array([[1.0, 0, 0], [np.cos(0.02), np.sin(0.02), 0]]).T
    enter, leave = column(8.0, 0.0, 0.5, -1, 1).intersect(rays)
    assert (enter[0], leave[0]) == pytest.approx((7.5, 8.5))
    triangle = extrusion(np.array([(4.0, -1.0), (6.0, -1.0), (4.0, 1.0)]), 2.0)
    enter, leave = triangle.intersect(rays)
    assert (enter[0], leave[0]) == pytest.approx((4.0, 5.0))
    enter, leave = frustum((4.0, 8.0, 1.0), -1.0, (5.0, 6.0, 0.5), 1.0).intersect(rays)
    assert (enter[0], leave[0]) == pytest.approx((4.5, 7.0))


@pytest.mark.parametrize("view", [90.0, 360.0])
def test_windows_lose_no_hit(view):
    lidar = Lidar(replace(QUIET, field_of_view=view, azimuth_step=1.5, elevations=(40.0, 0.0, -40.0)))
    for seed in range(60):
        draw = rng(seed)
        size = draw.uniform(0.2, 10.0, 3) * (2.0, 0.5, 0.7)
        kinds = (cuboid((0, 0, 0), size), ellipsoid((0, 0, 0), size / 2), limb((0, 0, 0), size, 0.3))
        shape = kinds[seed % 3].placed(yaw_matrix(draw.uniform(-4, 4)), draw.uniform(-15, 15, 3) * (1, 1, 0.3))
        missed = np.isfinite(shape.intersect(lidar.directions)[0])
        for window in lidar.windows(shape.hull_points):
            missed[window] = False
        assert not missed.any()


def test_rays_get_through_leaves_as_beer_and_lambert_say():
    lidar = Lidar(replace(QUIET, beams=60, azimuth_step=0.2, elevations=(3.0, 0.0, -3.0), field_of_view=20.0))
    hedge = Part(cuboid((10, 0, 0), (1.0, 30, 30)), 0.3, free_path=0.5)
    behind = Part(cuboid((15, 0, 0), (1.0, 60, 60)), 0.5)
    image = lidar.cast(scene_of([], [hedge, behind]), rng())
    forward = image.depth * lidar.directions[0]
    through = forward > 12
    assert through.mean() == pytest.approx(np.exp(-1.0 / 0.5), abs=0.02)
    assert forward[~through].min() >= 9.5
    assert forward[~through].max() <= 10.5


# The sensor


def test_ground_returns_lie_on_the_tilted_plane():
    config = SceneConfig(
        lidar=QUIET, traffic=NO_TRAFFIC, street=StreetConfig(clutter=0.0, buildings=False, max_tilt=2.0, roughness=0.0)
    )
    frame = FrameGenerator(config).generate(1)
    ground = frame.scene.ground
    assert ground.normal[2] < 1 - 1e-6
    assert ground.elevation_at(0.0, 0.0) == pytest.approx(-config.lidar.height)
    heights = frame.returns.points[:, :3] @ ground.normal + ground.height
    assert len(heights) > 500
    assert np.abs(heights).max() < 1e-4


def test_nothing_is_seen_behind_a_wall():
    lidar = Lidar(QUIET)
    hidden = [thing("Car", 20, 0), thing("Pedestrian", 15, 3), thing("Cyclist", 30, -4)]
    image = lidar.cast(scene_of(hidden, [wall(8, 0, 40.0)]), rng())
    assert (image.rays_alone > 0).all()
    assert image.rays_visible.sum() == 0
    assert lidar.measure(image, rng()).points[:, 0].max() < 8.0


@pytest.mark.parametrize("name", ["Car", "Pedestrian", "Cyclist"])
def test_density_falls_with_range(name):
    lidar = Lidar(LidarConfig())
    counts = []
    for distance in (8, 16, 32):
        image = lidar.cast(scene_of([thing(name, distance, 0, heading=1.2)]), rng())
        counts.append(int((lidar.measure(image, rng()).owner == 0).sum()))
    assert counts[0] > 2.5 * counts[1] > 2.5**2 * counts[2] > 0


def test_dropout_quadruples_at_the_end_of_the_range():
    lidar = Lidar(replace(QUIET, beams=100, azimuth_step=0.2, elevations=(5.0, 2.0, 1.0), dropout=0.05, max_range=70.0))
    for distance, lost in ((1.0, 0.05), (69.9, 0.2)):
        image = lidar.cast(scene_of([]), rng())
        image.depth[:] = distance
        kept = len(lidar.measure(image, rng()).points) / image.depth.size
        assert kept == pytest.approx(1 - lost, abs=0.01)


def test_noise_is_along_the_ray_and_of_the_asked_size():
    lidar = Lidar(replace(QUIET, range_noise=0.05, beams=80, azimuth_step=0.2))
    image = lidar.cast(scene_of([]), rng())
    near = image.depth < lidar.config.max_range
    points = lidar.measure(image, rng()).points[:, :3].astype(float)
    ranges = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(points / ranges[:, None], lidar.directions[:, near].T, atol=1e-6)
    assert (ranges - image.depth[near]).std() == pytest.approx(0.05, rel=0.05)


# Objects


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_fill_their_box_and_stay_inside(name):
    lidar = Lidar(replace(QUIET, beams=90, azimuth_step=0.15, elevations=(9.0, -10.0, -24.0), field_of_view=60.0))
    for seed in range(3):
        size = MODELS[name].sample_size(rng(seed))
        views = []
        for heading in np.arange(0, 6.2, 0.8):
            item = thing(name, 7.0, 0.0, heading, size, seed)
            returns = lidar.measure(lidar.cast(scene_of([item]), rng(seed)), rng(seed))
            views.append(in_box_frame(returns.points[returns.owner == 0, :3], item.box))
        points = np.concatenate(views)
        assert (np.abs(points) <= np.array(size) / 2 + 0.02).all()
        assert (np.ptp(points, axis=0) > 0.9 * np.array(size)).all()


def test_mean_sizes_are_those_of_kitti():
    for name, mean in {"Car": (3.9, 1.6, 1.56), "Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73)}.items():
        draw = rng()
        sizes = np.array([MODELS[name].sample_size(draw) for _ in range(3000)])
        np.testing.assert_allclose(sizes.mean(0), mean, rtol=0.02)
        assert (sizes.std(0) > 0.02).all()


def test_front_and_rear_of_a_car_differ():
    lidar = Lidar(replace(QUIET, beams=64, azimuth_step=0.2))
    profiles = []
    for heading in (0.0, np.pi):
        item = thing("Car", 8.0, 0.0, heading)
        returns = lidar.measure(lidar.cast(scene_of([item]), rng()), rng())
        local = in_box_frame(returns.points[returns.owner == 0, :3], item.box)
        profiles.append(np.abs(local[local[:, 2] > 0.3, 0]).max())
    assert abs(profiles[0] - profiles[1]) > 0.3


# Labels


def test_every_labelled_box_read_back_holds_its_points(quiet_frames):
    checked = 0
    for frame, files in quiet_frames:
        matrices, to_rect = calibration_of(files["calib"].decode())
        points = np.frombuffer(files["velodyne"], "<f4").reshape(-1, 4)[:, :3].astype(float)
        centers = np.array([item.box[:3] for item in frame.scene.objects])
        for name, values in labels_of(files["label_2"].decode()):
            if name == "DontCare":
                continue
            height, width, length = values[7:10]
            center = moved((values[10:13] - (0, height / 2, 0))[None], np.linalg.inv(to_rect))[0]
            box = np.array((*center, length, width, height, -values[13] - np.pi / 2))
            owner = int(np.linalg.norm(centers - center, axis=1).argmin())
            assert frame.scene.objects[owner].name == name
            own = in_box_frame(points[frame.returns.owner == owner], box)
            assert len(own) >= TINY.min_points
            assert (np.abs(own) <= box[3:6] / 2 + 0.02).all()
            checked += 1
    assert checked > 40


@pytest.mark.parametrize("heading", [0.0, 0.6, np.pi / 2, 2.9, -2.0])
def test_heading_follows_kitti(heading):
    generator = FrameGenerator(replace(TINY, lidar=QUIET))
    item = thing("Car", 15.0, 2.0, heading)
    scene = scene_of([item])
    image = generator.lidar.cast(scene, rng())
    label = label_objects(scene, image, generator.lidar.measure(image, rng()), generator.camera, TINY)[0]
    values = labels_of(label.line)[0][1]
    turned = values[13] - (-heading - np.pi / 2)
    assert np.cos(turned) == pytest.approx(1.0, abs=1e-5)
    assert -np.pi <= values[13] <= np.pi
    matrices, to_rect = calibration_of(generator.camera.calibration_text())
    ahead = np.array((np.cos(heading), np.sin(heading), 0.0)) * item.box[3] / 2
    front = moved((item.box[:3] + ahead)[None], to_rect)[0]
    corners = kitti_corners(values)
    np.testing.assert_allclose(corners[:4].mean(0), front, atol=0.02)
    projected = np.append(corners, np.ones((8, 1)), axis=1) @ matrices["P2"].T
    pixels = projected[:, :2] / projected[:, 2:]
    np.testing.assert_allclose(values[3:7], [*pixels.min(0), *pixels.max(0)], atol=1.5)
    viewing = np.arctan2(values[10], values[12])
    assert np.cos(values[2] - (values[13] - viewing)) == pytest.approx(1.0, abs=1e-5)


def test_occlusion_grows_with_a_blocker():
    generator = FrameGenerator(replace(TINY, lidar=replace(QUIET, azimuth_step=0.2)))
    levels = []
    for right_end in (-10.0, -0.25, 0.3, 1.0):
        scene = scene_of([thing("Car", 16.0, 0.0, np.pi / 2)], [wall(8.0, right_end - 5.0, 10.0)])
        image = generator.lidar.cast(scene, rng())
        label = label_objects(scene, image, generator.lidar.measure(image, rng()), generator.camera, TINY)[0]
        levels.append((label.name, label.occluded))
    assert levels == [("Car", 0), ("Car", 1), ("Car", 2), ("DontCare", -1)]


def test_occlusion_levels_by_share():
    assert [occlusion_level(visible, 100) for visible in (100, 76, 75, 36, 35, 0)] == [0, 0, 1, 1, 2, 2]
    assert occlusion_level(0, 0) == 2


def test_objects_across_the_image_border_are_truncated_and_beyond_it_left_out():
    generator = FrameGenerator(replace(TINY, lidar=QUIET))
    truncated = []
    for y in (0.0, -7.0, -7.9, -14.0):
        scene = scene_of([thing("Car", 9.0, y)])
        image = generator.lidar.cast(scene, rng())
        label = label_objects(scene, image, generator.lidar.measure(image, rng()), generator.camera, TINY)[0]
        truncated.append(label.truncated)
        assert label.bbox[2] <= 1241.0
    assert truncated[0] == 0.0
    assert 0.0 < truncated[1] < truncated[2] < 1.0
    assert truncated[3] == -1


def test_far_objects_become_regions_without_care():
    generator, near = FrameGenerator(SceneConfig()), replace(SceneConfig(), label_distance=36.0)
    scene = scene_of([thing("Car", 40.0, 0.0), thing("Car", 30.0, 5.0)])
    image = generator.lidar.cast(scene, rng())
    labels = label_objects(scene, image, generator.lidar.measure(image, rng()), generator.camera, near)
    assert [label.name for label in labels] == ["Car", "DontCare"]
    everything = replace(SceneConfig(), label_distance=60.0)
    labels = label_objects(scene, image, generator.lidar.measure(image, rng()), generator.camera, everything)
    assert [label.name for label in labels] == ["Car", "Car"]


def test_no_two_objects_overlap():
    generator = FrameGenerator(SceneConfig(lidar=QUIET))
    pairs = 0
    for index in range(15):
        rectangles = []
        for item in generator.generate(index).scene.objects:
            x, y, _, length, width, _, heading = item.box
            flat = shapely_box(-length / 2, -width / 2, length / 2, width / 2)
            rectangles.append(affinity.translate(affinity.rotate(flat, heading, (0, 0), use_radians=True), x, y))
        for first, second in combinations(rectangles, 2):
            assert first.intersection(second).area == 0
            pairs += 1
    assert pairs > 500


def test_a_rectangle_is_free_where_it_overlaps_none_in_shapely():
    draw = rng()
    rectangles = np.column_stack(
        (draw.uniform(-4, 4, (300, 2)), draw.uniform(0.3, 5, (300, 2)), draw.uniform(-4, 4, 300))
    )
    shapes = []
    for x, y, length, width, heading in rectangles:
        flat = shapely_box(-length / 2, -width / 2, length / 2, width / 2)
        shapes.append(affinity.translate(affinity.rotate(flat, heading, (0, 0), use_radians=True), x, y))
    for wanted, shape in zip(rectangles[:20].tolist(), shapes, strict=False):
        for (x, y, *size, heading), other in zip(rectangles.tolist(), shapes, strict=True):
            footprints = Footprints()
            assert footprints.take(x, y, size, heading)
            is_free = footprints.take(wanted[0], wanted[1], wanted[2:4], wanted[4], margin=0)
            assert is_free == (shape.intersection(other).area < 1e-9)


# Files


def test_files_are_those_of_kitti(written):
    out, summary = written
    names = [f"{index:06d}" for index in range(5)]
    assert (out / "ImageSets" / "train.txt").read_text().split() == names[:3]
    assert (out / "ImageSets" / "val.txt").read_text().split() == names[3:]
    assert (out / "ImageSets" / "test.txt").read_text() == ""
    counts = []
    for name in names:
        points = np.fromfile(out / "training" / "velodyne" / f"{name}.bin", "<f4").reshape(-1, 4)
        counts.append(len(points))
        assert np.isfinite(points).all()
        assert ((points[:, 3] >= 0) & (points[:, 3] <= 1)).all()
        picture = out / "training" / "image_2" / f"{name}.png"
        assert Image.open(picture).size == (1242, 375)
        assert picture.stat().st_size < 20_000
        matrices, to_rect = calibration_of((out / "training" / "calib" / f"{name}.txt").read_text())
        assert list(matrices) == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo"]
        np.testing.assert_allclose(to_rect[:3, :3] @ to_rect[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(to_rect[:3, :3]) == pytest.approx(1.0)
        assert not np.allclose(matrices["R0_rect"], np.eye(3), atol=1e-3)
        for kind, values in labels_of((out / "training" / "label_2" / f"{name}.txt").read_text()):
            assert kind in {*MODELS, "DontCare"}
            assert values.shape == (14,)
            assert (values[3:5] < values[5:7]).all()
            assert kind == "DontCare" or (0 <= values[0] <= 1 and values[1] in (0, 1, 2) and (values[7:10] > 0).all())
    assert summary.mean_points == pytest.approx(np.mean(counts))
    assert summary.num_frames == 5


def test_objects_stand_on_the_road_plane(written):
    out, _ = written
    for path in sorted((out / "training" / "planes").iterdir()):
        header, plane = path.read_text().splitlines()[:3], numbers(path.read_text().splitlines()[3])
        assert header == ["# Matrix", "WIDTH 4", "HEIGHT 1"]
        assert plane[1] < -0.99
        assert np.linalg.norm(plane[:3]) == pytest.approx(1.0, abs=1e-5)
        for name, values in labels_of((out / "training" / "label_2" / path.name).read_text()):
            if name != "DontCare":
                assert plane[:3] @ values[10:13] + plane[3] == pytest.approx(0.0, abs=0.01)


def test_the_kitti_reader_finds_points_in_every_object(tmp_path):
    write_scenes(TINY, tmp_path / "set", progress=False)
    summary = make_infos(tmp_path / "set", 1)
    assert summary.num_objects["Car"] > 3
    infos = pickle.loads((tmp_path / "set" / "kitti_infos_train.pkl").read_bytes())
    for info in infos:
        assert (info["annos"]["num_points_in_gt"][info["annos"]["name"] != "DontCare"] > 0).all()


def test_a_frame_without_objects_is_valid(tmp_path):
    config = replace(TINY, num_train=1, num_val=0, traffic=NO_TRAFFIC, street=StreetConfig(clutter=0.0))
    assert write_scenes(config, tmp_path / "set", progress=False).objects == {"DontCare": 1}
    assert make_infos(tmp_path / "set", 1).num_objects == {}
    infos = pickle.loads((tmp_path / "set" / "kitti_infos_train.pkl").read_bytes())
    assert infos[0]["annos"]["name"].tolist() == ["DontCare"]


def test_files_are_identical_for_any_number_of_workers(written, tmp_path):
    write_scenes(TINY, tmp_path / "set", workers=2, progress=False)
    assert digest(tmp_path / "set") == digest(written[0])


def test_a_frame_depends_on_seed_and_index_alone(written, tmp_path):
    write_scenes(replace(TINY, num_train=2, num_val=0), tmp_path / "fewer", progress=False)
    write_scenes(replace(TINY, num_train=1, num_val=0, seed=1), tmp_path / "other", progress=False)
    first, fewer, other = digest(written[0]), digest(tmp_path / "fewer"), digest(tmp_path / "other")
    frames = [name for name in fewer if name.startswith("training")]
    assert len(frames) == 10
    assert all(fewer[name] == first[name] for name in frames)
    assert first["training/velodyne/000000.bin"] != first["training/velodyne/000001.bin"]
    assert other["training/velodyne/000000.bin"] != first["training/velodyne/000000.bin"]


# Folders that are there already


def test_a_complete_data_set_is_reused(written, monkeypatch):
    monkeypatch.setattr(writer_module, "_run", lambda *_: pytest.fail("generated again"))
    again = write_scenes(TINY, written[0], workers=3)
    assert again == replace(written[1], reused=True)


def test_another_configuration_is_refused_and_replaced_when_asked(tmp_path):
    small = replace(TINY, num_train=2, num_val=0)
    write_scenes(small, tmp_path, progress=False)
    (tmp_path / "kitti_infos_train.pkl").touch()
    before = digest(tmp_path)
    with pytest.raises(ConfigError, match=r"NUM_TRAIN is 2 there and 1 here, SEED is 0 there and 5 here"):
        write_scenes(replace(small, num_train=1, seed=5), tmp_path, progress=False)
    assert digest(tmp_path) == before
    write_scenes(replace(small, num_train=1, seed=5), tmp_path, overwrite=True, progress=False)
    assert sorted(p.name for p in (tmp_path / "training" / "label_2").iterdir()) == ["000000.txt"]
    assert not (tmp_path / "kitti_infos_train.pkl").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_was_not_generated_is_never_touched(tmp_path, overwrite):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "mine.bin").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"no scenes\.json"):
        write_scenes(TINY, tmp_path, overwrite=overwrite, progress=False)
    assert digest(tmp_path) == {"training/mine.bin": hashlib.sha256(b"precious").hexdigest()}


def test_an_interrupted_generation_starts_again(tmp_path, monkeypatch):
    small = replace(TINY, num_train=2, num_val=0)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(small, tmp_path / "set", progress=False)
    assert not write_scenes(small, tmp_path / "set", progress=False).reused
    write_scenes(small, tmp_path / "fresh", progress=False)
    assert digest(tmp_path / "set") == digest(tmp_path / "fresh")


# Configuration


def test_the_shipped_yaml_holds_every_key_at_its_default():
    assert read_scene_config(PROJECT / "cfgs" / "synthetic" / "scenes.yaml") == SceneConfig()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["LIDAR.BEAMS", "1"], "BEAMS must be at least 2"),
        (["LIDAR.ELEVATIONS", "[2.0, 3.0, -24.0]"], "three falling angles"),
        (["TRAFFIC.CARS", "[5, 2]"], r"CARS must be \[fewest, most\]"),
        (["TRAFFIC.REACH", "80.0"], "raise it, or lower REACH"),
        (["STREET.JUNCTION", "1.5"], "JUNCTION is a probability"),
        (["NUM_TRAIN", "0", "NUM_VAL", "0"], "must be 1 to 1000000"),
    ],
)
def test_impossible_settings_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        read_scene_config(PROJECT / "cfgs" / "synthetic" / "scenes.yaml", overrides)


def test_a_full_turn_also_sees_what_is_behind():
    config = replace(TINY, lidar=replace(QUIET, field_of_view=360.0, azimuth_step=1.0))
    points = FrameGenerator(config).generate(0).returns.points
    assert 0.35 < (points[:, 0] < 0).mean() < 0.65


def test_the_command_writes_a_data_set(tmp_path):
    command = [sys.executable, PROJECT / "tools" / "make_scenes.py", "--cfg", "cfgs/synthetic/scenes.yaml"]
    command += [
        "--out",
        tmp_path / "set",
        "--workers",
        "1",
        "--set",
        "NUM_TRAIN",
        "2",
        "NUM_VAL",
        "1",
        "LIDAR.BEAMS",
        "8",
    ]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=env)
    assert done.returncode == 0, done.stderr
    assert "3 frames" in done.stdout
    assert len(list((tmp_path / "set" / "training" / "velodyne").iterdir())) == 3
