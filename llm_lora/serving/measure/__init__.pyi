from . import bench as bench
from . import drift as drift
