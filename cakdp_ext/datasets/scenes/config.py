"""What kind of scenes are asked for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cakdp_ext.config import from_node, load_config


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class LidarConfig:
    """A spinning LiDAR with beams stacked over each other.

    Attributes:
        beams: number of beams; half of them point above the middle elevation, half below, as in an HDL-64.
        elevations: ``(top, middle, bottom)`` in degrees.
        azimuth_step: degrees between two shots of a beam.
        field_of_view: degrees of azimuth that are scanned, centred on +x; 360 is a full turn.
        height: metres above the ground at the sensor.
        max_range: metres; what lies farther gives no return.
        range_noise: standard deviation in metres.
        intensity_noise: standard deviation; intensities lie in [0, 1].
        dropout: share of shots without a return at zero range; at ``max_range`` it is four times as large.
    """

    beams: int = 40
    elevations: tuple[float, float, float] = (2.0, -8.5, -24.8)
    azimuth_step: float = 0.25
    field_of_view: float = 90.0
    height: float = 1.73
    max_range: float = 70.0
    range_noise: float = 0.02
    intensity_noise: float = 0.04
    dropout: float = 0.04

    def __post_init__(self) -> None:
        _require(self.beams >= 2, f"BEAMS must be at least 2, got {self.beams}")
        descending = len(self.elevations) == 3 and self.elevations[0] > self.elevations[1] > self.elevations[2]
        _require(descending, f"ELEVATIONS must be three falling angles (top, middle, bottom), got {self.elevations}")
        _require(0 < self.azimuth_step <= 5, f"AZIMUTH_STEP must be in (0, 5] degrees, got {self.azimuth_step}")
        _require(10 <= self.field_of_view <= 360, f"FIELD_OF_VIEW must be in [10, 360], got {self.field_of_view}")
        _require(self.height > 0, f"HEIGHT must be above 0 m, got {self.height}")
        _require(self.max_range > 5, f"MAX_RANGE must be above 5 m, got {self.max_range}")
        _require(self.range_noise >= 0, f"RANGE_NOISE must not be negative, got {self.range_noise}")
        _require(self.intensity_noise >= 0, f"INTENSITY_NOISE must not be negative, got {self.intensity_noise}")
        _require(0 <= self.dropout <= 0.25, f"DROPOUT must be in [0, 0.25], got {self.dropout}")


@dataclass(frozen=True)
class TrafficConfig:
    """How many objects a frame is given, ``[fewest, most]`` of each kind, drawn uniformly.

    Fewer are labelled than are placed: some find no free spot, some are hidden, some stand outside the image.

    Attributes:
        cars: parked along the road, driving in the lanes and crossing.
        pedestrians: on the pavements and crossing, alone and in groups.
        cyclists: along the lanes, on the pavements and crossing.
        vans: neighbours of the cars.
        misc: trailers and carts.
        far_cars: beyond ``reach``, where few rays get.
        reach: metres within which everything but ``far_cars`` stands.
    """

    cars: tuple[int, int] = (2, 8)
    pedestrians: tuple[int, int] = (1, 10)
    cyclists: tuple[int, int] = (1, 7)
    vans: tuple[int, int] = (0, 1)
    misc: tuple[int, int] = (0, 1)
    far_cars: tuple[int, int] = (0, 3)
    reach: float = 26.0

    def __post_init__(self) -> None:
        for name in ("cars", "pedestrians", "cyclists", "vans", "misc", "far_cars"):
            counts = getattr(self, name)
            valid = len(counts) == 2 and 0 <= counts[0] <= counts[1]
            _require(valid, f"{name.upper()} must be [fewest, most] with 0 <= fewest <= most, got {counts}")
        _require(self.reach >= 10, f"REACH must be at least 10 m, got {self.reach}")


@dataclass(frozen=True)
class StreetConfig:
    """What the street looks like.

    Attributes:
        clutter: density of poles, trees, bushes, bins, signs and parked bicycles; 1 is a busy street, 0 an empty one.
        buildings: whether walls and hedges line the street.
        junction: probability of a crossing street.
        max_tilt: largest tilt of the ground in degrees, about either axis.
        roughness: amplitude of the ground's unevenness in metres.
    """

    clutter: float = 1.0
    buildings: bool = True
    junction: float = 0.4
    max_tilt: float = 1.0
    roughness: float = 0.012

    def __post_init__(self) -> None:
        _require(0 <= self.clutter <= 5, f"CLUTTER must be in [0, 5], got {self.clutter}")
        _require(0 <= self.junction <= 1, f"JUNCTION is a probability, got {self.junction}")
        _require(0 <= self.max_tilt <= 5, f"MAX_TILT must be in [0, 5] degrees, got {self.max_tilt}")
        _require(0 <= self.roughness <= 0.1, f"ROUGHNESS must be in [0, 0.1] m, got {self.roughness}")


@dataclass(frozen=True)
class SequenceConfig:
    """What moves between the sweeps of a segment; used where scenes are written in Waymo's layout.

    Attributes:
        frames: sweeps of a segment, 0.1 s apart.
        ego_speed: ``[slowest, fastest]`` metres a second of the sensor's car.
        max_turn: its fastest turn in degrees a second.
        moving: share of the vehicles, cyclists and pedestrians that move, where nothing is in their way.
    """

    frames: int = 10
    ego_speed: tuple[float, float] = (0.0, 8.0)
    max_turn: float = 6.0
    moving: float = 0.5

    def __post_init__(self) -> None:
        _require(1 <= self.frames <= 1000, f"FRAMES of SEQUENCE must be in [1, 1000], got {self.frames}")
        slow, fast = self.ego_speed
        _require(0 <= slow <= fast <= 30, f"EGO_SPEED must be [slowest, fastest] in [0, 30] m/s, got {self.ego_speed}")
        _require(0 <= self.max_turn <= 30, f"MAX_TURN must be in [0, 30] degrees a second, got {self.max_turn}")
        _require(0 <= self.moving <= 1, f"MOVING is a share, got {self.moving}")


@dataclass(frozen=True)
class SceneConfig:
    """A data set of generated scenes.

    Attributes:
        num_train: frames of the train split; they come first.
        num_val: frames of the val split.
        seed: frame i depends on (seed, i) and on the settings below, on nothing else.
        min_points: an object with fewer returns in the image becomes a DontCare region (with none, nothing).
        min_visible: an object with a smaller visible share becomes a DontCare region.
        label_distance: an object whose centre is farther away than this, in metres on the ground, becomes a DontCare
            region.
        lidar: the sensor.
        traffic: the objects.
        street: everything else.
        sequence: what moves, in Waymo's layout; None takes its defaults.
    """

    num_train: int = 216
    num_val: int = 80
    seed: int = 0
    min_points: int = 4
    min_visible: float = 0.08
    label_distance: float = 26.0
    lidar: LidarConfig = field(default_factory=LidarConfig)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    street: StreetConfig = field(default_factory=StreetConfig)
    sequence: SequenceConfig | None = None

    def __post_init__(self) -> None:
        _require(self.num_train >= 0, f"NUM_TRAIN must not be negative, got {self.num_train}")
        _require(self.num_val >= 0, f"NUM_VAL must not be negative, got {self.num_val}")
        _require(0 < self.num_frames <= 1_000_000, f"NUM_TRAIN + NUM_VAL must be 1 to 1000000, got {self.num_frames}")
        _require(self.seed >= 0, f"SEED must not be negative, got {self.seed}")
        _require(self.min_points >= 1, f"MIN_POINTS must be at least 1, got {self.min_points}")
        _require(0 <= self.min_visible <= 1, f"MIN_VISIBLE must be in [0, 1], got {self.min_visible}")
        _require(self.label_distance > 0, f"LABEL_DISTANCE must be above 0 m, got {self.label_distance}")
        reach, max_range = self.traffic.reach, self.lidar.max_range
        _require(
            reach + 5 <= max_range, f"MAX_RANGE {max_range} must be 5 m above REACH {reach}: raise it, or lower REACH"
        )

    @property
    def num_frames(self) -> int:
        """Frames of all splits."""
        return self.num_train + self.num_val


def read_scene_config(path: str | Path, overrides: Sequence[str] = ()) -> SceneConfig:
    """Read a YAML file such as ``cfgs/synthetic/scenes.yaml``.

    Args:
        path: the YAML file; its top holds the keys of ``SceneConfig``.
        overrides: flat list ``[KEY, VALUE, ...]`` as after ``--set``.

    Raises:
        ConfigError: for an unknown key or a value out of its range.
    """
    node = {key: value for key, value in load_config(path, overrides).items() if key != "CONFIG_FILE"}
    return from_node(SceneConfig, node, str(path))
