"""Dense chains seen one neuron at a time: single sites, order parameters, latents, and what closed forms share."""
