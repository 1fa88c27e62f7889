"""Multiple choice by likelihood: CMMLU, C-Eval, C3 and files of one's own."""
