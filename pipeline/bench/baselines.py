"""Plain baselines that do the same work as in tutorials and the original FairFace Generator."""

import io
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.bench.context import SIZE
from pipeline.gan.trainer import GanTrainer

plain_transform: Callable[[Image.Image], Tensor] = v2.Compose(
    [
        v2.Resize(SIZE, antialias=True),
        v2.CenterCrop(SIZE),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


class ImageFolder(Dataset):
    """Images from single files: Pillow, then torchvision's Resize, CenterCrop and Normalize, one image at a time."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return plain_transform(Image.open(self.paths[index]).convert("RGB"))


def decode_member(member: dict[str, bytes]) -> Tensor:
    """Decode a sample of webdataset."""
    return plain_transform(Image.open(io.BytesIO(member["jpg"])).convert("RGB"))


def repeat_loader(loader: DataLoader) -> Iterator[Tensor]:
    """Yield the batches of a loader without end, epoch after epoch."""
    for _ in repeat(None):
        yield from loader


class PlainGan:
    """The training loop of published tutorials and the original: eager, fp32, sigmoid and BCELoss."""

    def __init__(self, trainer: GanTrainer, device: torch.device) -> None:
        latent_dim, g, d = trainer.options.latent_dim, trainer.networks.g, trainer.networks.d
        first, last = g.net[0], d.net[-1]
        assert isinstance(first, nn.ConvTranspose2d)
        assert isinstance(last, nn.Conv2d)
        g.net[0] = nn.ConvTranspose2d(latent_dim, first.out_channels, 4, 1, 0, bias=False)
        d.net[-1] = nn.Conv2d(last.in_channels, 1, 4, 1, 0, bias=False)
        self.g, self.d = (net.to(device).to(memory_format=torch.contiguous_format) for net in (g, d))
        self.adam_g, self.adam_d = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (self.g, self.d))
        self.loss, self.device, self.latent_dim = nn.BCELoss(), device, latent_dim

    def step(self, images: Tensor) -> int:
        """Update both networks on float32 [B, 3, S, S]; return B."""
        images = images.to(self.device)
        real, fake = torch.ones(len(images), device=self.device), torch.zeros(len(images), device=self.device)
        generated = self.g(torch.randn(len(images), self.latent_dim, device=self.device))
        self.d.zero_grad()
        (self.loss(self.d(images).sigmoid(), real) + self.loss(self.d(generated.detach()).sigmoid(), fake)).backward()
        self.adam_d.step()
        self.g.zero_grad()
        self.loss(self.d(generated).sigmoid(), real).backward()
        self.adam_g.step()
        return len(images)
