"""Thin callbacks that attach a recorder inside of somebody else's training loop; each needs the library it is named after."""
