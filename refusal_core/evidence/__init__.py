"""Whether a direction is about harm, not chance, style or length: the questions, their numbers, their answers."""
