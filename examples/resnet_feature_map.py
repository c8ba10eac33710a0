"""Pool a torchvision ResNet's last feature map with GPO, and turn it into four embeddings with SetPrediction."""

import torch
from torchvision.models import resnet18

from vse.aggregators import GPO, SetPrediction


def main() -> None:
    """Run both on random pictures; put weights="DEFAULT" for trained ones."""
    backbone = resnet18(weights=None)
    body = torch.nn.Sequential(*list(backbone.children())[:-2]).eval()  # without its average pooling and classifier
    pictures = torch.randn(2, 3, 224, 224)

    features = body(pictures)  # (2, 512, 7, 7)
    cells = features.flatten(2).transpose(1, 2)  # (2, 49, 512): a set of 49 cells, row by row

    gpo = GPO()
    print("GPO", gpo(cells).embeddings.shape)  # (2, 1, 512), in the place of backbone.avgpool

    slots = SetPrediction(in_dim=512, out_dim=256, position="sine_2d", grid=(7, 7), project_context=True)
    result = slots(cells)
    print("SetPrediction", result.embeddings.shape)  # (2, 4, 256)
    print("its attention over the cells", result.attention.unflatten(-1, (7, 7)).shape)  # (2, 4, 7, 7)


if __name__ == "__main__":
    main()
