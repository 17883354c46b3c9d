"""Tasks of reasoning-gym 0.1.25 whose scorers call nothing that could run what a model writes; a test reads them."""

NAMES = """
    ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation
    caesar_cipher calendar_arithmetic chain_sum circuit_logic coin_flip color_cube_rotation complex_arithmetic
    count_bits count_primes course_schedule decimal_arithmetic decimal_chain_sum dice emoji_mystery
    family_relationships figlet_font fraction_simplification futoshiki game_of_life game_of_life_halting gcd
    group_anagrams gsm_symbolic isomorphic_strings kakurasu knight_swap knights_knaves largest_island lcm
    leg_counting letter_counting letter_jumble list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku
    modulo_grid needle_haystack number_filtering number_format number_sequence palindrome_generation
    palindrome_partitioning path_star polynomial_equations prime_factorization products quantum_lock ransom_note
    rearc rectangle_count rotate_matrix rotten_oranges self_reference sentence_reordering simple_equations
    simple_geometry spell_backward string_manipulation string_splitting string_synthesis sudoku survo syllogism
    time_intervals tsumego word_ladder word_sequence_reversal word_sorting zebra_puzzles
"""
SAFE_TASKS = frozenset(NAMES.split())
