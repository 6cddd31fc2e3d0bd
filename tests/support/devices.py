"""The devices that there are to train on."""

import torch

DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
