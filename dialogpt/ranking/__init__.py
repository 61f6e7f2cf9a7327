"""Ranking: what chooses among candidate replies, by mutual information (MMI) or by DialogRPT's heads."""
