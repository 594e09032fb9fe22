"""The response functions A and B of the theory, by three ways."""

from torch_dmft.theory.responses.responses import Responses, responses

__all__ = ["Responses", "responses"]
