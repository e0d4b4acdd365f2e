"""What a trained model is worth: attacks, certified radii, Lipschitz constants, its inside."""
