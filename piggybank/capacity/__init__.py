"""How much an installation carries: the phases and their numbers, what is measured, what it costs, which limit comes first."""
