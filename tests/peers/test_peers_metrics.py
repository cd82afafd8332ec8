"""What the tests of MONAI and medpy hold of overlap and distance, as inputs and numbers, beside what we say of the same
inputs.

The inputs are described anew; the numbers are those in Project-MONAI/MONAI, tests/metrics/ (compute_meandice,
compute_meaniou, compute_confusion_matrix, hausdorff_distance, surface_distance, surface_dice), and in loli/medpy,
tests/metric_/binary.py, or were computed with medpy 0.5.2 and surface-distance 0.1 where it says so. Where definitions
differ, both numbers stand here, so that a change of ours is seen. No peer is imported, except by the last tests, which
run with `-m all`.
"""
import math

import numpy as np
import pytest

from liverseg.metrics import border_distances, case_metrics, distances, overlap

INF, NAN = math.inf, math.nan
MM = (.85, 1.2, .9)
ONES = (1., 1., 1.)


def ball(radius, centre, spacing=ONES, shape=(99,)*3):
    "Voxels whose centres are no farther than radius (mm) from centre (mm)"
    off = [(np.arange(n)*s - c)**2 for n, s, c in zip(shape, spacing, centre)]
    return off[0][:, None, None] + off[1][:, None] + off[2] <= radius**2


def square(digits):
    "Four pixels, by rows: '1001' is the diagonal"
    return np.array([c == '1' for c in digits]).reshape(2, 2)


def counts(pred, true):
    p, t = square(pred), square(true)
    return overlap(int((p & t).sum()), int(p.sum()), int(t.sum()))


def same(found, said, **how): assert float(found) == pytest.approx(said, nan_ok=True, **how)


# ---- overlap of four pixels

@pytest.mark.parametrize('pred, true, dice, iou', [
    ('1001', '1011', .8, .6667), ('0011', '1010', .5, .3333), ('1000', '0100', 0, 0), ('1000', '1100', .6667, .5),
    ('0110', '0010', .6667, .5),
    ('1110', '1111', .857143, .75), ('1011', '0001', .5, .3333), ('0111', '1100', .4, .25), ('1111', '1111', 1, 1),
    ('0000', '1111', 0, 0)])
def test_dice_and_iou(pred, true, dice, iou):
    found = counts(pred, true)
    same(found['dice'], dice, abs=1e-4); same(found['jaccard'], iou, abs=1e-4)


@pytest.mark.parametrize('pred, true, ours, monai, monai_counting_empty, medpy',
                         [('0000', '0000', NAN, NAN, 1, NAN), ('1111', '0000', 0, NAN, 0, 0),
                          ('0000', '1111', 0, 0, 0, 0)])
def test_dice_of_the_empty(pred, true, ours, monai, monai_counting_empty, medpy):
    "MONAI leaves out every case without truth, we only what is empty twice; medpy 0.5.2 does as we do"
    found = counts(pred, true)['dice']
    same(found, ours); same(found, medpy)
    if pred != true: same(found, monai_counting_empty)
    assert math.isnan(monai) == (true == '0000')


# of three classes
IMAGES = [[('1110', '1111'), ('0100', '0000'), ('0111', '0000')],
          [('1011', '0001'), ('0111', '1100'), ('0110', '0010')]]


@pytest.mark.parametrize('measure, classes, mean, ours',
                         [('dice', (.6786, .4, .6667), .689683, .403968),
                          ('jaccard', (.5416, .25, .5), .5555, .305556)])
def test_means_over_images_and_classes(measure, classes, mean, ours):
    """Two classes of the first image are invented: MONAI leaves them out, with us each is a 0, and the mean is lower by
    0.29 and 0.25"""
    found = np.array([[counts(*pair)[measure] for pair in image] for image in IMAGES], float)
    with_truth = np.where([['1' in true for _, true in image] for image in IMAGES], found, np.nan)
    np.testing.assert_allclose(np.nanmean(with_truth, 0), classes, atol=1e-4)
    same(np.nanmean(with_truth, 1).mean(), mean, abs=1e-4)
    same(found.mean(1).mean(), ours, abs=1e-5)


CONFUSION = [('0100', '0001', 0, 1, 1), ('0011', '1010', 1, 1, 1), ('1000', '0100', 0, 1, 1), # pred, true, TP, FP, FN
             ('0001', '0001', 1, 0, 0), ('1000', '1100', 1, 0, 1), ('0110', '0010', 1, 1, 0)]


def test_confusion_of_each_pair():
    for pred, true, tp, fp, fn in CONFUSION:
        found, p, t = counts(pred, true), square(pred), square(true)
        assert ((p & t).sum(), (p & ~t).sum(), (~p & t).sum()) == (tp, fp, fn)
        same(found['recall'], tp/(tp + fn))
        same(found['precision'], tp/(tp + fp))
        same(found['jaccard'], tp/(tp + fp + fn)); same(found['voe'], 1 - tp/(tp + fp + fn))


@pytest.mark.parametrize('measure, classes, mean',
                         [('recall', (.5, .5, .5), .5), ('precision', (.5, .75, .25), .5),
                          ('jaccard', (.5, .4167, .25), .3889), ('dice', (.5, .5833, .3333), .4722)])
def test_confusion_means(measure, classes, mean):
    "MONAI's tpr, ppv, ts and f1"
    found = np.array([counts(*row[:2])[measure] for row in CONFUSION], float).reshape(2, 3)
    np.testing.assert_allclose(found.mean(0), classes, atol=1e-4)
    same(found.mean(), mean, abs=1e-4)


def test_recall_where_there_is_no_truth():
    pairs = [row[:2] for row in CONFUSION[:3]] + [('0000', '1111'), ('0000', '0000'), ('1111', '0000'),
                                                  ('0000', '0110'), ('0000', '1001'), ('1111', '0000')]
    found = np.array([counts(*p)['recall'] for p in pairs])
    assert np.isfinite(found).sum() == 6 and np.nansum(found) == pytest.approx(.5)


@pytest.mark.parametrize('pred, true, precision, recall',
                         [('0000', '0000', NAN, NAN), ('0000', '1111', NAN, 0), ('1111', '0000', 0, NAN)])
def test_precision_and_recall_of_the_empty(pred, true, precision, recall):
    "As medpy 0.5.2 has it"
    found = counts(pred, true)
    same(found['precision'], precision); same(found['recall'], recall)


def test_jaccard_of_two_empty_masks():
    "medpy 0.5.2 says 1, MONAI's nan is ours"
    same(counts('0000', '0000')['jaccard'], NAN)


# ---- distances between balls

# (radius, centre) of the prediction and of the truth, spacing, percentile; Hausdorff from the prediction's border to
# the truth's, and the larger of both ways
BALLS = [
    ((20, (49, 49, 49)), (20, (49, 49, 49)), ONES, 100, 0, 0),
    ((20, (20, 20, 20)), (20, (19, 19, 19)), ONES, 100, 1.7320508075688772, 1.7320508075688772),
    ((33, (19, 33, 22)), (33, (20, 33, 22)), ONES, 100, 1, 1),
    ((20, (20, 33, 22)), (40, (20, 33, 22)), ONES, 100, 20.09975124224178, 20.223748416156685),
    ((20, (20, 33, 22)), (40, (20, 33, 22)), ONES, 95, 19.924858845171276, 20.09975124224178),
    ((20, (20, 20, 20)), (20, (19, 19, 19)), MM, 100, 2.0808651447296143, 2.2671568),
    ((15, (20, 33, 22)), (30, (20, 33, 22)), MM, 100, 15.439640998840332, 15.62594),
]


@pytest.mark.parametrize('pred, true, spacing, percent, there, larger', BALLS)
def test_hausdorff_of_balls(pred, true, spacing, percent, there, larger):
    pred, true = (ball(*b, spacing) for b in (pred, true))
    ways = [np.percentile(d, percent) for d in border_distances(pred, true, spacing)]
    same(ways[0], there, rel=1e-6); same(max(ways), larger, rel=1e-6)
    if percent == 95: same(distances(pred, true, spacing)['hd95_mm'], larger, rel=1e-6)


@pytest.mark.parametrize('pred, true, spacing, symmetric, there', [
    ((20, (49, 49, 49)), (20, (49, 49, 49)), ONES, 0, 0),
    ((33, (19, 33, 22)), (33, (20, 33, 22)), ONES, .350217, .3483278807706289),
    ((20, (20, 33, 22)), (40, (20, 33, 22)), ONES, 15.117741, 12.040033513150455),
    ((33, (42, 45, 52)), (33, (43, 45, 52)), MM, .4951, .4951)])
def test_surface_distance_of_balls(pred, true, spacing, symmetric, there):
    pred, true = (ball(*b, spacing) for b in (pred, true))
    same(border_distances(pred, true, spacing)[0].mean(), there, rel=1e-5)
    same(distances(pred, true, spacing)['assd_mm'], symmetric, rel=1e-5)


def test_distances_of_the_empty():
    "MONAI's as ours: infinite, 0 and undefined; medpy 0.5.2 raises RuntimeError"
    full, empty = ball(5, (5, 5, 5), shape=(11,)*3), np.zeros((11,)*3, bool)
    for pair in ((full, empty), (empty, full)): assert distances(*pair, ONES) == dict(hd95_mm=INF, assd_mm=INF, nsd=0)
    assert all(map(math.isnan, distances(empty, empty, ONES).values()))


# ---- surface Dice

HALVES = 1 - (478 + 480 + 9*2)/(480*4 + 588*2 + 578*2) # of 480 x 640 pixels, all from column 50 on, and from 60 on
LEFT = 1 - (478 + 480 + 9*2)/(480*4 + 48*2 + 58*2)
BLOCKS = 1 - (200*110 + 198*108 + 9*200*2 + 9*108*2)/(200*110*4 + (58 + 48)*200*2 + (58 + 48)*108*2)


@pytest.mark.parametrize('spacing, tolerance, right, left',
                         [((1, 1), 0, HALVES, LEFT), ((.85, 1.2), 0, HALVES, LEFT), ((1, 1), 10, 1, 1),
                          ((.85, 1.2), 12, 1, 1)])
def test_surface_dice_of_two_halves(spacing, tolerance, right, left):
    pred, true = (np.broadcast_to(np.arange(640) >= n, (480, 640)) for n in (50, 60))
    same(distances(pred, true, spacing, tolerance)['nsd'], right)
    same(distances(~pred, ~true, spacing, tolerance)['nsd'], left)


def test_surface_dice_of_two_blocks():
    pred, true = (np.broadcast_to(np.arange(80) >= n, (200, 110, 80)) for n in (20, 30))
    same(distances(pred, true, ONES, 0)['nsd'], BLOCKS); same(distances(pred, true, ONES, 10)['nsd'], 1)


# border pixels farther off than the tolerance
@pytest.mark.parametrize('tolerance, around, bars',
                         [(0, 12, 6), (2.8, 3, 6), (3, 1, 6), (5.5, 0, 4), (6, 0, 2), (6.5, 0, 0)])
def test_surface_dice_of_two_bars(tolerance, around, bars):
    "Three pixels each, and the background around them with its 84 border pixels"
    pred, true = np.zeros((2, 10, 10), bool)
    pred[1:4, 1] = true[5:8, 6] = True
    same(distances(pred, true, (1, 1), tolerance)['nsd'], 1 - bars/6)
    same(distances(~pred, ~true, (1, 1), tolerance)['nsd'], 1 - around/84)


# ---- where definitions differ: ours, theirs

OURS_SLABS = 0.754935


def test_surface_dice_with_surface_elements():
    """MONAI with use_subvoxels: two voxels 2 mm apart share half of their surface at 1 mm, with us nothing; and two
    slabs, 2 mm on"""
    a, b = np.zeros((2, 128, 128, 128), bool)
    a[50, 60, 70] = b[50, 60, 72] = True
    ours, theirs = distances(b, a, (3, 2, 1), 1.)['nsd'], .5
    assert (ours, ours - theirs) == (0, -.5)
    a, b = np.zeros((2, 100, 100, 100), bool)
    a[:50] = b[:51] = True
    ours, theirs = distances(b, a, (2, 1, 1), 1.)['nsd'], .836145
    same(ours, OURS_SLABS, abs=1e-6); same(ours - theirs, OURS_SLABS - .836145, abs=1e-6)


# two balls, spacing, voxels; then hd95, assd, nsd of ours, hd95 and nsd of surface-distance 0.1, hd95 of medpy 0.5.2
ELEMENTS = [
    ((20, (20, 20, 20)), (20, (19, 19, 19)), ONES, (99,)*3, (1.732051, .895743, 1.), (1.414214, 1.), 1.732051),
    ((20, (20, 33, 22)), (40, (20, 33, 22)), ONES, (99,)*3, (20.099751, 15.117741, .024644), (19.949937, .023269),
     20.049938),
    ((20, (20, 20, 20)), (20, (19, 19, 19)), MM, (99,)*3, (1.724094, .868472, .998636), (1.470544, .999715), 1.724094),
    ((30, (50, 50, 50)), (30, (52, 50, 50)), (1, 1, 5), (100, 100, 20), (2., .414767, 1.), (2., 1.), 2.),
    ((30, (50, 50, 50)), (28, (50, 50, 50)), (3, 3, 6), (34, 34, 17), (6., 2.002451, .407752), (4.242641, .66528), 6.),
]


@pytest.mark.parametrize('pred, true, spacing, shape, ours, elements, pooled', ELEMENTS)
def test_border_voxels_beside_surface_elements_and_pooling(pred, true, spacing, shape, ours, elements, pooled):
    "On a grid of 3 x 3 x 6 mm our HD95 is 1.8 mm larger than with surface elements, and NSD is lower by 0.26"
    pred, true = (ball(*b, spacing, shape) for b in (pred, true))
    found = distances(pred, true, spacing)
    for k, said in zip(('hd95_mm', 'assd_mm', 'nsd'), ours): same(found[k], said, abs=2e-6)
    # that is all that medpy does differently
    same(np.percentile(np.concatenate(border_distances(pred, true, spacing)), 95), pooled, abs=2e-6)
    assert found['hd95_mm'] >= max(elements[0], pooled) - 1e-6


def test_asd_of_two_pixels():
    for mm in (1, 2): assert [d.mean() for d in border_distances(np.array([1, 0]), np.array([0, 1]), (mm,))] == [mm, mm]
    assert [d.mean() for d in border_distances(np.array([1, 0]), np.array([1, 0]), (1,))] == [0, 0]


def test_two_hooks():
    "asd, assd, hd, overlap as in medpy 0.5.2, which says 1.2485 for HD95, both ways together; ours is 0.083 more"
    pred, true = np.zeros((2, 4, 4), bool)
    pred[:, 0] = pred[3, 1] = True
    true[:3, 0] = true[0, 1] = True
    there, back = border_distances(pred, true, (1, 1))
    same(there.mean(), .4828427); same(back.mean(), .25); same(max(there.max(), back.max()), 2**.5)
    found = case_metrics(pred, true, (1, 1))
    for k, said in dict(dice=2/3, jaccard=.5, precision=.6, recall=.75, rvd=.25, assd_mm=.3793571,
                        hd95_mm=1.3313708).items():
        same(found[k], said)
    same(found['hd95_mm'] - 1.2485281, .0828427)


# ---- the peers themselves

def blobs(seed):
    from scipy.ndimage import gaussian_filter
    rng = np.random.default_rng(seed)
    a, b = (gaussian_filter(rng.standard_normal((40, 40, 16)), 3) for _ in range(2))
    a, b = a/a.std(), b/b.std()
    return a > .8, a + .4*b > .8, ((1., 1., 1.), (.8, .8, 3.), (3., 3., 6.))[seed % 3]


@pytest.mark.all
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', range(6))
def test_monai_on_random_blobs(seed):
    monai, torch = pytest.importorskip('monai.metrics'), pytest.importorskip('torch')
    pred, true, spacing = blobs(seed)
    hot, how, found = [torch.from_numpy(np.stack([~m, m]))[None]
                       for m in (pred, true)], dict(include_background=False,
                                                    spacing=spacing), case_metrics(pred, true, spacing)
    same(found['hd95_mm'], float(monai.compute_hausdorff_distance(*hot, percentile=95, **how)), rel=1e-5)
    same(found['assd_mm'], float(monai.compute_average_surface_distance(*hot, symmetric=True, **how)), rel=1e-5)
    same(found['nsd'], float(monai.compute_surface_dice(*hot, [2.], **how)), rel=1e-5)
    same(found['dice'], float(monai.compute_dice(*hot, include_background=False)), rel=1e-5)


@pytest.mark.all
@pytest.mark.parametrize('seed', range(6))
def test_medpy_on_random_blobs(seed):
    medpy = pytest.importorskip('medpy.metric.binary')
    pred, true, spacing = blobs(seed)
    found = case_metrics(pred, true, spacing)
    for k, v in dict(dice=medpy.dc, jaccard=medpy.jc, precision=medpy.precision, recall=medpy.recall).items():
        same(found[k], v(pred, true))
    same(found['assd_mm'], medpy.assd(pred, true, spacing))
    pooled = np.percentile(np.concatenate(border_distances(pred, true, spacing)), 95)
    same(pooled, medpy.hd95(pred, true, spacing)); assert found['hd95_mm'] >= pooled - 1e-9
