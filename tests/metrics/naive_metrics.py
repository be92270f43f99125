"""The metrics by their definitions, in float64 with a loop over every distinct score: slow and plain."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage


def thresholds(scores):
    return sorted(set(np.asarray(scores, dtype=np.float64).tolist()), reverse=True)


def auroc(scores, labels):
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    if len(normal) == 0 or len(anomalous) == 0:
        return None
    won = sum(float((score > normal).sum()) + 0.5 * float((score == normal).sum()) for score in anomalous)
    return won / (len(normal) * len(anomalous))


def average_precision(scores, labels):
    if not labels.any() or labels.all():
        return None
    total, recall_before = 0.0, 0.0
    for threshold in thresholds(scores):
        chosen = scores >= threshold
        recall = labels[chosen].sum() / labels.sum()
        total += (recall - recall_before) * labels[chosen].mean()
        recall_before = recall
    return total


def f1max(scores, labels):
    if not labels.any() or labels.all():
        return None
    best = 0.0
    for threshold in thresholds(scores):
        chosen = scores >= threshold
        best = max(best, 2 * labels[chosen].sum() / (chosen.sum() + labels.sum()))
    return best


def regions_of(maps, masks):
    """The scores of each 8-connected region, image by image."""
    found = []
    for scores, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask > 0, structure=np.ones((3, 3)))
        found.extend(scores[labels == region + 1] for region in range(count))
    return found


def area_to(limit, points):
    """Area under the polyline through ``points``, cut at ``limit``, as a share of the largest possible."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def aupro(maps, masks):
    regions = regions_of(maps, masks)
    normal = np.concatenate([scores[mask <= 0] for scores, mask in zip(maps, masks, strict=True)])
    if not regions or len(normal) == 0:
        return None
    points = [(0.0, 0.0)]
    for threshold in thresholds(np.concatenate([scores.ravel() for scores in maps])):
        overlap = np.mean([(region >= threshold).mean() for region in regions])
        points.append(((normal >= threshold).mean(), overlap))
    return area_to(0.3, points)


def aupro_99(maps, masks):
    regions = regions_of(maps, masks)
    normal = np.sort(np.concatenate([scores[mask <= 0] for scores, mask in zip(maps, masks, strict=True)]))
    if not regions or len(normal) == 0:
        return None
    points = [(1.0, 1.0)]
    for position in np.linspace(0, len(normal) - 1, 99).astype(int):
        overlap = np.mean([(region > normal[position]).mean() for region in regions])
        points.append((1 - (position + 1) / len(normal), overlap))
    return area_to(0.3, points[::-1])


def evaluate(maps, masks, image_scores, image_labels):
    maps = [np.asarray(scores, dtype=np.float64) for scores in maps]
    masks = [np.asarray(mask) for mask in masks]
    pixel_scores = np.concatenate([scores.ravel() for scores in maps])
    pixel_labels = np.concatenate([(mask > 0).ravel() for mask in masks]).astype(int)
    values = []
    for scores, labels in (
        (np.asarray(image_scores, dtype=np.float64), np.asarray(image_labels).astype(int)),
        (pixel_scores, pixel_labels),
    ):
        values += [auroc(scores, labels), average_precision(scores, labels), f1max(scores, labels)]
    values += [aupro(maps, masks), aupro_99(maps, masks)]
    keys = ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO", "AUPRO-99")
    return dict(zip(keys, values, strict=True))
