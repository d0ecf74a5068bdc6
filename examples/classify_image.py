"""Classify a picture with a trained network of the zoo.

python examples/classify_image.py              # A picture that comes with the package.
python examples/classify_image.py photo.jpg    # One of your own: any size.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

from ce_keras import zoo

WEIGHTS = "resnext11c_11x7d/cifar10"  # 11 paths of width 7: half the baseline's parameters.


def main() -> None:
    """Print the three likeliest classes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path, nargs="?", default=Path(__file__).parent / "ship.jpg")
    image = parser.parse_args().image
    if not image.is_file():
        parser.error(f"image: there is no file {image}")

    model = zoo.resnext11c(cardinality=11, width=7, weights="cifar10")
    # The network has learnt from pictures of 32x32 pixels.
    size = {"target_size": (32, 32), "interpolation": "lanczos", "keep_aspect_ratio": True}
    try:
        picture = keras.utils.load_img(image, **size)
    except OSError as error:
        parser.error(f"image: {image} is no picture: {error}")
    pixels = keras.utils.img_to_array(picture)
    probabilities = model(zoo.preprocess_input(pixels, weights=WEIGHTS)[np.newaxis])
    for _, name, probability in zoo.decode_predictions(
        keras.ops.convert_to_numpy(probabilities), top=3, weights=WEIGHTS
    )[0]:
        print(f"{name:12} {probability:.1%}")


if __name__ == "__main__":
    main()
