"""A site's model in other programs' forms: a PEFT folder, one merged file for CineMA's code, a MONAI bundle."""
