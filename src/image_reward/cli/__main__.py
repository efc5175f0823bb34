"""`python -m image_reward.cli` is `image-reward`."""

import sys

from image_reward.cli import main

sys.exit(main())
