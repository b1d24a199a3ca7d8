"""KITTI's rule spelled out object by object, slowly: what the fast evaluation is held against."""

import math

from shapely.geometry import Polygon

HEIGHT = {"easy": 40, "moderate": 25, "hard": 25}
OCCLUSION = {"easy": 0, "moderate": 1, "hard": 2}
TRUNCATION = {"easy": 0.15, "moderate": 0.3, "hard": 0.5}
LIKE = {"Car": "Van", "Pedestrian": "Person_sitting"}


def image_iou(a, b, over_first=False):
    (l1, t1, r1, b1), (l2, t2, r2, b2) = a, b
    width, height = min(r1, r2) - max(l1, l2), min(b1, b2) - max(t1, t2)
    if width <= 0 or height <= 0:
        return 0.0
    first, second = (r1 - l1) * (b1 - t1), (r2 - l2) * (b2 - t2)
    return width * height / (first if over_first else first + second - width * height)


def footprint(thing):
    """Polygon in the camera's x-z plane; rotation_y turns x towards minus z."""
    (x, _, z), (length, _, width), angle = thing["location"], thing["dimensions"], thing["rotation_y"]
    along = (math.cos(angle) * length / 2, -math.sin(angle) * length / 2)
    across = (math.sin(angle) * width / 2, math.cos(angle) * width / 2)
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return Polygon([(x + i * along[0] + j * across[0], z + i * along[1] + j * across[1]) for i, j in signs])


def overlap(truth, found, metric):
    if metric == "image":
        return image_iou(truth["bbox"], found["bbox"])
    first, second = footprint(truth), footprint(found)
    shared = first.intersection(second).area
    if metric == "bev":
        return shared / (first.area + second.area - shared)
    bottom1, bottom2 = truth["location"][1], found["location"][1]
    height1, height2 = truth["dimensions"][1], found["dimensions"][1]
    shared *= max(0.0, min(bottom1, bottom2) - max(bottom1 - height1, bottom2 - height2))
    return shared / (first.area * height1 + second.area * height2 - shared)


def role_of_truth(thing, name, level):
    if thing["name"] == LIKE.get(name):
        return "ignored"
    if thing["name"] != name:
        return "absent"
    left, top, right, bottom = thing["bbox"]
    hard = bottom - top <= HEIGHT[level] or thing["occluded"] > OCCLUSION[level]
    return "ignored" if hard or thing["truncated"] > TRUNCATION[level] else "counted"


def role_of_detection(thing, name, level):
    if abs(thing["bbox"][3] - thing["bbox"][1]) < HEIGHT[level]:
        return "ignored"
    return "counted" if thing["name"] == name else "absent"


class Frame:
    """One frame for one class, difficulty and metric; overlaps are looked up in a table made once."""

    def __init__(self, truths, detections, table, name, level):
        self.truths, self.detections, self.table = truths, detections, table
        self.truth_roles = [role_of_truth(t, name, level) for t in truths]
        self.roles = [role_of_detection(d, name, level) for d in detections]

    def reachable(self, t, bound, taken, lowest):
        return [
            d
            for d in range(len(self.detections))
            if self.roles[d] != "absent"
            and d not in taken
            and self.detections[d]["score"] >= lowest
            and self.table[t][d] > bound
        ]

    def scores_of_finders(self, bound):
        taken, scores = set(), []
        for t, role in enumerate(self.truth_roles):
            choices = [] if role == "absent" else self.reachable(t, bound, taken, -math.inf)
            if choices:
                best = max(choices, key=lambda d: (self.detections[d]["score"], -d))
                taken.add(best)
                if role == "counted" and self.roles[best] == "counted":
                    scores.append(self.detections[best]["score"])
        return scores

    def count(self, bound, lowest, excuse):
        """Right detections, wrong ones, and the similarity of the right ones."""
        taken, right, similarity = set(), 0, 0.0
        for t, role in enumerate(self.truth_roles):
            choices = [] if role == "absent" else self.reachable(t, bound, taken, lowest)
            proper = [d for d in choices if self.roles[d] == "counted"]
            if proper:
                best = max(proper, key=lambda d: (self.table[t][d], -d))
            elif choices:
                best = choices[0]
            else:
                continue
            taken.add(best)
            if role == "counted" and self.roles[best] == "counted":
                right += 1
                turn = self.truths[t]["alpha"] - self.detections[best]["alpha"]
                similarity += (1 + math.cos(turn)) / 2
        wrong = 0
        for d, thing in enumerate(self.detections):
            if self.roles[d] == "counted" and d not in taken and thing["score"] >= lowest:
                regions = [t["bbox"] for t in self.truths if t["name"] == "DontCare"] if excuse else []
                wrong += not any(image_iou(thing["bbox"], region, over_first=True) > bound for region in regions)
        return right, wrong, similarity


def sampled(scores, total):
    """The scores where recall comes nearest to 0, 1/40, 2/40 and so on, the last one always."""
    scores, wanted, chosen = sorted(scores, reverse=True), 0.0, []
    for i, score in enumerate(scores):
        last = i == len(scores) - 1
        too_early = (i + 2) / total - wanted < wanted - (i + 1) / total
        if last or not too_early:
            chosen.append(score)
            wanted += 1 / 40
    return chosen


def average(curve):
    curve = [max(curve[i:]) for i in range(len(curve))] + [0.0] * (41 - len(curve))
    return sum(curve[0:41:4]) / 11 * 100, sum(curve[1:41]) / 40 * 100


def reference_ap(frames, tables, name, level, metric, bound):
    """AP and AOS, each over 11 and over 40 positions.

    frames: list of (truths, detections), lists of plain dicts; tables: overlaps [frame][truth][detection].
    """
    games = [Frame(t, d, table, name, level) for (t, d), table in zip(frames, tables, strict=True)]
    scores = [score for game in games for score in game.scores_of_finders(bound)]
    total = sum(game.truth_roles.count("counted") for game in games)
    precision, orientation = [], []
    for lowest in sampled(scores, total):
        counts = [game.count(bound, lowest, metric == "image") for game in games]
        right, wrong, similarity = (sum(column) for column in zip(*counts, strict=True))
        precision.append(right / (right + wrong) if right + wrong else 0.0)
        orientation.append(similarity / (right + wrong) if right + wrong else 0.0)
    return average(precision), average(orientation)
