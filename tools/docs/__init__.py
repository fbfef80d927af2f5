"""The contract with the platform as documents, made from the models that the code checks with."""
