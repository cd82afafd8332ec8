"Every measure against another implementation, on masks that nobody chose."
import math

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from liverseg.metrics import border, case_metrics

monai = pytest.importorskip('monai.metrics')
sitk = pytest.importorskip('SimpleITK')


@st.composite
def pairs(draw):
    "Two masks on one grid: noise, blobs, single voxels, empty or full ones, also at the edge; and a spacing"
    shape = draw(st.tuples(*[st.integers(1, 9)]*3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    def mask(kind):
        if kind == 'noise': return rng.random(shape) < rng.random()
        if kind == 'voxel': return np.arange(np.prod(shape)).reshape(shape) == rng.integers(np.prod(shape))
        if kind == 'box':
            return np.all([(a >= lo) & (a < hi)
                           for a, lo, hi in zip(np.indices(shape),
                                                *np.sort(rng.integers(0, np.array(shape) + 1, (2, 3)), 0))], 0)
        return np.full(shape, kind == 'full')
    kinds = st.sampled_from(['noise', 'noise', 'box', 'box', 'voxel', 'empty', 'full'])
    return mask(draw(kinds)), mask(draw(kinds)), tuple(draw(st.sampled_from([.5, .8, 1., 2.5, 5.])) for _ in range(3))


def by_monai(pred, true, spacing, tolerance):
    import torch
    hot = [torch.from_numpy(np.stack([~m, m]).astype(np.float32))[None] for m in (pred, true)]
    how = dict(include_background=False, spacing=spacing)
    return dict(hd95_mm=monai.compute_hausdorff_distance(*hot, percentile=95, **how),
                assd_mm=monai.compute_average_surface_distance(*hot, symmetric=True, **how),
                nsd=monai.compute_surface_dice(*hot, [tolerance], **how),
                dice=monai.compute_dice(*hot, include_background=False),
                jaccard=monai.compute_iou(*hot, include_background=False))


def by_sitk(pred, true):
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(*[sitk.GetImageFromArray(m.astype(np.uint8)) for m in (pred, true)])
    return dict(dice=measure.GetDiceCoefficient(), jaccard=measure.GetJaccardCoefficient(),
                recall=1 - measure.GetFalseNegativeError(), precision=1 - measure.GetFalseDiscoveryRate())


@settings(deadline=None, max_examples=150, derandomize=True)
@given(pairs())
@example((np.ones((4, 4, 4), bool), np.ones((4, 4, 4), bool), (1., 1., 1.)))
@pytest.mark.filterwarnings('ignore')
def test_two_masks_with_liver_measure_as_monai_and_simpleitk_say(pair):
    pred, true, spacing = pair
    if not (pred.any() and true.any()): return
    found = case_metrics(pred, true, spacing, 2.)
    for k, v in by_monai(pred, true, spacing, 2.).items():
        assert math.isclose(found[k], float(v), rel_tol=1e-5, abs_tol=1e-5), k
    for k, v in by_sitk(pred, true).items(): assert math.isclose(found[k], v, abs_tol=1e-9), k


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pairs())
def test_what_must_hold_of_any_two_masks(pair):
    pred, true, spacing = pair
    one, other, itself = (case_metrics(a, b, spacing) for a, b in ((pred, true), (true, pred), (true, true)))
    for k in ('dice', 'jaccard', 'voe', 'hd95_mm', 'assd_mm', 'nsd'):
        assert one[k] == pytest.approx(other[k], nan_ok=True)
    assert one['precision'] == pytest.approx(other['recall'], nan_ok=True)
    if true.any():
        assert (itself['dice'], itself['hd95_mm'], itself['assd_mm'], itself['nsd'], itself['rvd']) == (1, 0, 0, 1, 0)
    assert border(true).sum() <= true.sum() and bool(border(true).any()) == bool(true.any())


def test_worked_out_by_hand():
    "A plate of 3 x 3 voxels of 1 x 1 x 2 mm, and the same one slice on with a corner missing"
    true, pred = np.zeros((5, 5, 3), bool), np.zeros((5, 5, 3), bool)
    true[1:4, 1:4, 0] = pred[1:4, 1:4, 1] = True
    pred[3, 3, 1] = False
    found = case_metrics(pred, true, (1, 1, 2), tolerance=2)
    # 8 points each 2 mm off and 9 back, of which the missing corner's is sqrt(1 + 4) off
    assert found['assd_mm'] == pytest.approx((8*2 + 8*2 + 5**.5)/17)
    assert found['nsd'] == pytest.approx(16/17)
    assert found['hd95_mm'] == pytest.approx(2 + .6*(5**.5 - 2)) # position .95·8 = 7.6 of nine sorted values
    assert (found['dice'], found['precision'], found['recall'], found['voe']) == (0, 0, 0, 1)
    assert found['rvd'] == pytest.approx(-1/9)
    assert (found['volume_ml_true'], found['volume_ml_pred']) == (pytest.approx(.018), pytest.approx(.016))
