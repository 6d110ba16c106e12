"""Re-exports the S3D network at its public path."""

from ..networks.s3d import S3D, Encoder

__all__ = ["S3D", "Encoder"]
