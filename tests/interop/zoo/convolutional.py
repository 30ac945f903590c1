"""Convolutional networks for images, sound and video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1 = nn.Linear(24, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.fc1.in_features)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inside != width:
            self.downsample = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 2

    def __init__(self, inside, width, stride):
        super().__init__()
        outside = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, block, widths, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        inside, stages = 4, []
        for width, stride in zip(widths, (1, 2)):
            layers = [
                block(inside if i == 0 else width * block.expansion, width, stride if i == 0 else 1)
                for i in range(blocks)
            ]
            stages.append(nn.Sequential(*layers))
            inside = width * block.expansion
        self.layer1, self.layer2 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(True), nn.MaxPool2d(2, 2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(2, 2)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            *(nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(0.4)),
            *(nn.Linear(16, 12), nn.ReLU(True), nn.Dropout(0.2)),
            nn.Linear(12, 5),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseLayer(nn.Module):
    def __init__(self, inside, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.ModuleDict({f"layer{i}": DenseLayer(4 + 3 * i, 3) for i in range(2)})
        self.transition = nn.Sequential(nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.AvgPool2d(2, 2))
        self.head = nn.Linear(5 * 4 * 4, 4)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.block.values():
            features.append(layer(features))
        return self.head(self.transition(torch.cat(features, 1)).flatten(1))


class SqueezeExcite(nn.Module):
    """Gated by a hard sigmoid, spelt out: the derivative of F.hardsigmoid is a float32 sixth, in float64 too."""

    def __init__(self, width):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x):
        return x * (F.relu6(self.fc2(F.relu(self.fc1(self.pool(x)))) + 3.0) / 6.0)


class InvertedResidual(nn.Module):
    def __init__(self, inside, outside, stride, activation):
        super().__init__()
        hidden = 2 * inside
        self.residual = stride == 1 and inside == outside
        self.conv = nn.Sequential(
            *(nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation()),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), activation()),
            SqueezeExcite(hidden),
            *(nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside)),
        )

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(4, 4, 1, nn.ReLU6), InvertedResidual(4, 6, 2, nn.Hardswish))
        self.classifier = nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x):
        return self.classifier(self.blocks(self.stem(x)).mean([2, 3]))


class ConvNorm(nn.Module):
    def __init__(self, inside, outside, **options):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, bias=False, **options)
        self.bn = nn.BatchNorm2d(outside, eps=1e-3, momentum=0.3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch1 = ConvNorm(3, 2, kernel_size=1)
        self.branch3 = nn.Sequential(ConvNorm(3, 3, kernel_size=1), ConvNorm(3, 4, kernel_size=3, padding=1))
        self.left = ConvNorm(4, 2, kernel_size=(1, 3), padding=(0, 1))
        self.right = ConvNorm(4, 2, kernel_size=(3, 1), padding=(1, 0))
        self.pool = ConvNorm(3, 2, kernel_size=1)
        self.fc = nn.Linear(11, 4)

    def forward(self, x):
        x = 0.5 * x + 0.1
        tall = self.branch3(x)
        mean = self.pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        branches = [self.branch1(x), self.left(tall), self.right(tall), mean, F.max_pool2d(x, 3, stride=1, padding=1)]
        return self.fc(F.adaptive_avg_pool2d(torch.cat(branches, 1), (1, 1)).squeeze(-1).squeeze(-1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.SiLU())
        self.middle = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.up2 = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(8, 4, 3, stride=1, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = F.interpolate(self.middle(F.avg_pool2d(b, 2)), scale_factor=2, mode="nearest") + b
        d = torch.cat([self.up2(c), a], dim=1)
        coarse = F.interpolate(c[:, :4], size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.elu(self.up1(d)) + coarse)


class AudioNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Conv1d(1, 6, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(6)
        self.dilated = nn.Conv1d(6, 12, 3, padding="same", dilation=2, groups=2)
        self.act = nn.PReLU(6)
        self.post = nn.InstanceNorm1d(6, affine=True)
        self.up = nn.ConvTranspose1d(6, 3, 4, stride=2, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.act(self.norm(self.front(x)))
        x = self.post(F.glu(self.dilated(x), dim=1) + x)
        pooled = F.adaptive_max_pool1d(x, 1).squeeze(-1)
        return self.fc(F.dropout(pooled, 0.3, self.training)), self.up(x)


class VideoNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv3d(1, 3, 3, padding=1, stride=(1, 2, 2)), nn.BatchNorm3d(3)
        self.conv2 = nn.Conv3d(3, 4, (2, 3, 3), padding=(0, 1, 1))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool3d(F.mish(self.bn(self.conv1(x))), 2, stride=1, padding=1)
        x = F.avg_pool3d(F.celu(self.conv2(x)), (2, 2, 2), stride=(1, 1, 1))
        return self.fc(F.adaptive_avg_pool3d(x, (1, 2, 2)).flatten(1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(0.3 * torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.blocks = nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        sharp = self.shuffle(self.conv2(torch.tanh(self.conv1(x))))
        return sharp + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
