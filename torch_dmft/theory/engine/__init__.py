"""The engine: networks whose Gaussian weight matrices are sampled only where training looks, and how they are trained."""
