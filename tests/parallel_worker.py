"""Train a few steps with BatchNorm frozen, alone or as one of several processes, and write losses and weights:
`parallel_worker.py PNG OUT`."""
import sys
from pathlib import Path

import torch
from fastai.vision.all import Callback, TrainEvalCallback, maybe_gather, num_distrib, rank_distrib, set_seed
from safetensors.torch import save_file

from liverseg.data import liver_dls, training_table
from liverseg.train import liver_learner
from liverseg.checkpoint import distributed

N, BATCH = 32, 8  # slices, and those of a joint batch


class Watch(Callback):
    "Keeps BatchNorm as it is and notes each joint batch's loss"
    run_after = TrainEvalCallback
    def __init__(self): self.losses = []
    def before_train(self):
        for m in self.learn.model.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.eval()
    def after_loss(self):
        if self.training: self.losses.append(maybe_gather(self.learn.loss.detach()).item())


png, out, share = sys.argv[1], Path(sys.argv[2]), max(num_distrib(), 1)
table = training_table(png)
# an odd number, so that one is shown twice
train, valid = table[~table['is_valid'] & (table['liver_px'] > 0)].head(N), table[table['is_valid']].head(11)
assert len(train) == N
import pandas as pd
set_seed(0)
dls = liver_dls(png, pd.concat([train, valid], ignore_index=True), size=64, bs=BATCH//share, augment='none',
                device='cpu')
order = torch.arange(N)
if share == 1: order = order.view(2, -1, BATCH//2).transpose(0, 1).flatten()  # as two processes meet them
dls.train.get_idxs = order.tolist
learn = liver_learner(dls, 'resnet18', pretrained=False, cbs=[watch := Watch()])
rank = rank_distrib()
with distributed(learn), learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
out.mkdir(exist_ok=True)
save_file({k: v.contiguous() for k, v in learn.model.state_dict().items()}, out / f'weights{rank}.safetensors')
(out / f'losses{rank}.txt').write_text('\n'.join(map(str, [*watch.losses, *learn.recorder.values[-1][1:]])))
