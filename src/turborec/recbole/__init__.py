"""RecBole's model classes, trained by turborec's engine and measured by its evaluator, in an environment of their own."""
