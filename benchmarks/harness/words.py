"""Words and numbers as all tables show them."""

LABELS = {"mlp": "MLP", "lenet": "LeNet", "resnet": "ResNet-20", "vit": "ViT", "gpt": "GPT"}


def short(number: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
