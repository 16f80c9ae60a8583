"""How fast a recipe trains, what each lever adds, and the proof that it was on."""
