"""A center head meets the teacher by metric position, whatever the strides."""

from dataclasses import replace

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation import match_sites
from cakdp_ext.distillation import matching as matching_module

LOW = (-4.0, 0.8)
PAIRS = {
    "same stride": (((-4.0, 0.8), (0.8, 0.8), (7, 9), 1), ((-4.0, 0.8), (0.8, 0.8), (7, 9), 1)),
    "several anchors a cell": (((-4.0, 0.8), (0.8, 0.8), (7, 9), 1), ((-4.0, 0.8), (0.8, 0.8), (7, 9), 6)),
    "teacher 8, student 4": (((-4.0, 0.8), (0.4, 0.4), (14, 10), 1), ((-4.0, 0.8), (0.8, 0.8), (7, 5), 2)),
    "teacher 4, student 8": (((-4.0, 0.8), (0.8, 0.8), (7, 5), 1), ((-4.0, 0.8), (0.4, 0.4), (14, 10), 2)),
    "teacher 2, student 8": (((-4.0, 0.8), (0.8, 0.8), (3, 4), 1), ((-4.0, 0.8), (0.2, 0.2), (12, 16), 1)),
    "teacher 8, student 2": (((-4.0, 0.8), (0.2, 0.2), (12, 16), 1), ((-4.0, 0.8), (0.8, 0.8), (3, 4), 2)),
    "ratio 3": (((-4.0, 0.8), (0.3, 0.3), (12, 9), 1), ((-4.0, 0.8), (0.9, 0.9), (4, 3), 2)),
    "ratio 1/3": (((-4.0, 0.8), (0.9, 0.9), (4, 3), 1), ((-4.0, 0.8), (0.3, 0.3), (12, 9), 2)),
    "oblong voxels": (((-4.0, 0.8), (0.8, 0.4), (5, 6), 1), ((-4.0, 0.8), (0.4, 0.8), (10, 3), 2)),
    "wider teacher": (((-4.0, 0.8), (0.8, 0.8), (3, 4), 1), ((-8.0, -2.4), (0.8, 0.8), (12, 9), 2)),
    "wider and coarser teacher": (((-4.0, 0.8), (0.4, 0.4), (6, 8), 1), ((-7.2, -2.4), (0.8, 0.8), (12, 9), 2)),
    "half a cell apart": (((-4.0, 0.8), (0.8, 0.8), (4, 5), 1), ((-4.4, 0.4), (0.8, 0.8), (6, 7), 1)),
    "anchor student, center teacher": (((-4.0, 0.8), (0.8, 0.8), (4, 3), 6), ((-4.0, 0.8), (0.4, 0.4), (8, 6), 1)),
}


def lists_of(candidates):
    return [sorted(set(row)) for row in candidates.tolist()]


@pytest.mark.parametrize("name", PAIRS)
def test_candidates_are_those_of_a_search_through_all_pairs(make_map, slow_candidates, name):
    student, teacher = (make_map(*arguments) for arguments in PAIRS[name])
    match = match_sites(student.sites, teacher.sites)
    expected = slow_candidates(student, teacher)
    assert lists_of(match.candidates) == expected
    assert match.candidates.shape == (len(student.cells), max(map(len, expected)))
    assert match.num_teacher_sites == len(teacher.cells)


@pytest.mark.parametrize("name", PAIRS)
def test_centres_far_out_and_with_rounding_errors_find_the_same(make_map, slow_candidates, name):
    """Heads compute their centres in several ways; 75 m from the origin float32 rounds them by 4e-6 m."""
    maps = [make_map((low[0] - 71.2, low[1] - 76.0), *shape) for low, *shape in PAIRS[name]]
    generator = torch.Generator().manual_seed(0)
    errors = [(torch.rand(len(one.cells), 2, generator=generator) - 0.5) * 2e-5 for one in maps]
    noisy = [replace(one.sites, centers=one.sites.centers + error) for one, error in zip(maps, errors, strict=True)]
    assert lists_of(match_sites(*noisy).candidates) == slow_candidates(*maps)


def test_the_order_of_the_sites_is_free(make_map):
    student, teacher = (make_map(*arguments).sites for arguments in PAIRS["teacher 4, student 8"])
    rows = torch.randperm(len(teacher.centers), generator=torch.Generator().manual_seed(1))
    expected = match_sites(student, teacher).candidates
    found = match_sites(student, replace(teacher, centers=teacher.centers[rows])).candidates
    assert lists_of(rows[found]) == lists_of(expected)


def slow_indices(candidates, indices, logits):
    chosen = []
    for frame, row in enumerate(indices.tolist()):
        chosen.append([max(candidates[i], key=lambda site: max(logits[frame][site])) for i in row])
    return chosen


@pytest.mark.parametrize("name", PAIRS)
def test_the_candidate_with_the_best_class_score_answers(make_map, slow_candidates, name):
    student, teacher = (make_map(*arguments) for arguments in PAIRS[name])
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, len(teacher.cells), 3, generator=generator).requires_grad_()
    indices = torch.randint(len(student.cells), (3, 20), generator=generator)
    found = match_sites(student.sites, teacher.sites).teacher_indices(indices, logits)
    assert found.tolist() == slow_indices(slow_candidates(student, teacher), indices, logits.tolist())
    assert not found.requires_grad


def test_among_equals_the_first_answers_and_lists_filled_up_do_not_count(make_map):
    student, teacher = make_map(LOW, (0.8, 0.8), (3, 2)), make_map(LOW, (0.4, 0.4), (6, 3))
    match = match_sites(student.sites, teacher.sites)
    assert lists_of(match.candidates)[0] == [0, 1, 6, 7]
    assert lists_of(match.candidates)[3] == [12, 13]
    found = match.teacher_indices(torch.tensor([[0, 3]]), torch.zeros(1, 18, 3))
    assert found.tolist() == [[0, 12]]


def test_between_anchor_heads_the_index_stays(make_sites):
    sites = make_sites(12)
    match = match_sites(sites, sites)
    indices = torch.tensor([[3, 11, 0]])
    assert match.candidates is None
    assert torch.equal(match.teacher_indices(indices, torch.zeros(1, 12, 3)), indices)
    with pytest.raises(ConfigError, match="anchor 0"):
        match_sites(sites, make_sites(12, seed=1))


@pytest.mark.parametrize("size", [(3, 0), (0, 4)])
def test_no_representatives_give_no_indices(make_map, size):
    sites = make_map(LOW, (0.8, 0.8), (3, 4), 2).sites
    found = match_sites(replace(sites, anchors=None), sites).teacher_indices(
        torch.zeros(size, dtype=torch.int64), torch.zeros(size[0], 24, 3)
    )
    assert found.shape == size


def test_a_pair_is_computed_once(make_map, monkeypatch):
    calls = []
    search = matching_module.sites_in_cells
    monkeypatch.setattr(matching_module, "sites_in_cells", lambda *pair: calls.append(pair) or search(*pair))
    student, teacher = (make_map(LOW, (0.8, 0.8), (3, 4)).sites for _ in range(2))
    first = match_sites(student, teacher)
    assert match_sites(replace(student), replace(teacher)) is first
    assert len(calls) == 1
    assert match_sites(student, replace(teacher, centers=teacher.centers.clone())) is not first
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (((-4.0, 20.0), (0.8, 0.8), (3, 4)), r"12 of 12 predictions .* first at \(-3.60, 1.20\) m"),
        (
            ((-3.2, 0.8), (0.8, 0.8), (3, 4)),
            r"4 of 12 predictions .*x -4.00 to -1.60 m, y 0.80 to 4.00 m, the teacher's x -3.20",
        ),
        (
            ((-4.0, 0.8), (0.8, 0.8), (3, 3)),
            r"3 of 12 predictions .* first at \(-3.60, 3.60\) m.*same POINT_CLOUD_RANGE",
        ),
        (((-4.0, 0.8), (0.8, 0.8), (1, 4)), "the teacher's map has fewer than two cells along x or y"),
    ],
)
def test_a_teacher_that_does_not_see_the_students_cells_is_refused(make_map, teacher, message):
    with pytest.raises(ConfigError, match=message):
        match_sites(make_map(LOW, (0.8, 0.8), (3, 4)).sites, make_map(*teacher).sites)


def test_a_hole_in_the_teachers_map_is_no_cell(make_map):
    sites = make_map(LOW, (0.8, 0.8), (3, 4)).sites
    with pytest.raises(ConfigError, match=r"1 of 12 predictions .* first at \(-2.80, 2.00\)"):
        match_sites(sites, replace(sites, centers=torch.cat([sites.centers[:4], sites.centers[5:]])))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_centres_on_no_grid_are_refused(make_map, make_sites, who):
    pair = {"student": make_map(LOW, (0.8, 0.8), (3, 4)).sites, "teacher": make_map(LOW, (0.8, 0.8), (3, 4)).sites}
    pair[who] = replace(make_sites(12), anchors=None)
    with pytest.raises(ConfigError, match=f"{who}'s predictions lie on no regular grid"):
        match_sites(pair["student"], pair["teacher"])


def test_other_numbers_of_classes_are_refused(make_map):
    sites = make_map(LOW, (0.8, 0.8), (3, 4)).sites
    with pytest.raises(ConfigError, match="student tells 3 classes apart, the teacher 1"):
        match_sites(sites, replace(sites, num_classes=1))


def test_predictions_of_another_map_than_the_sites_are_refused(make_map):
    sites = make_map(LOW, (0.8, 0.8), (3, 4)).sites
    with pytest.raises(ValueError, match=r"shape \(B, 12, C\), got \(2, 10, 3\)"):
        match_sites(sites, sites).teacher_indices(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 10, 3))


def test_first_stage_logits_that_are_not_finite_are_named_where_they_are_asked(make_map):
    sites = make_map(LOW, (0.8, 0.8), (3, 4)).sites
    match, logits = match_sites(sites, sites), torch.zeros(1, 12, 3)
    logits[0, 5, 1] = float("nan")
    assert match.teacher_indices(torch.tensor([[4, 6]]), logits).tolist() == [[4, 6]]
    with pytest.raises(FloatingPointError, match="1 of 2 of the teacher's first-stage class logits"):
        match.teacher_indices(torch.tensor([[4, 5]]), logits)


@pytest.mark.parametrize(
    ("low", "student", "teacher"),
    [
        ((-75.2, -75.2), ((0.8, 0.8), (188, 188)), ((0.8, 0.8), (188, 188), 6)),
        ((-75.2, -75.2), ((0.8, 0.8), (188, 188)), ((0.4, 0.4), (376, 376), 1)),
        ((0.0, -40.0), ((0.4, 0.4), (176, 200)), ((0.4, 0.4), (176, 200), 6)),
    ],
)
def test_a_map_of_waymo_or_kitti_needs_two_megabytes(make_map, low, student, teacher):
    teacher = make_map(low, *teacher).sites
    candidates = match_sites(make_map(low, *student).sites, teacher).candidates
    assert candidates.numel() * candidates.element_size() < 2e6
    assert torch.equal(candidates.flatten().sort().values, torch.arange(len(teacher.centers)))
