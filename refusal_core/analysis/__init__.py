"""Pure mathematics on arrays: directions, inner products, cross-fitting, resampling, effect sizes. No torch."""
