"""How a run writes its summaries: beams, penalties, or the consensus of samples; chosen on dev."""
