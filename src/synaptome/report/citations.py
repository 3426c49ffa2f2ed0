"""BibTeX of the methods and data sets, by the keys that runs name in their summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from synaptome.report.text import clean

if TYPE_CHECKING:
    from synaptome.training.run import RunRecord

BIBTEX = {
    "synaptome": """\
@software{synaptome,
  title  = {Synaptome: networks whose synapses are chosen, watched and trained},
  author = {{The Synaptome developers}},
  note   = {Python package},
}""",
    "wan2013": """\
@inproceedings{wan2013,
  title     = {Regularization of Neural Networks using {DropConnect}},
  author    = {Wan, Li and Zeiler, Matthew and Zhang, Sixin and Le Cun, Yann and Fergus, Rob},
  booktitle = {Proceedings of the 30th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {28},
  number    = {3},
  pages     = {1058--1066},
  year      = {2013},
  url       = {https://proceedings.mlr.press/v28/wan13.html},
}""",
    "mianjy2019": """\
@inproceedings{mianjy2019,
  title     = {On Dropout and Nuclear Norm Regularization},
  author    = {Mianjy, Poorya and Arora, Raman},
  booktitle = {Proceedings of the 36th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {97},
  pages     = {4575--4584},
  year      = {2019},
  url       = {https://proceedings.mlr.press/v97/mianjy19a.html},
}""",
    "saxe2019": """\
@article{saxe2019,
  title   = {A mathematical theory of semantic development in deep neural networks},
  author  = {Saxe, Andrew M. and McClelland, James L. and Ganguli, Surya},
  journal = {Proceedings of the National Academy of Sciences},
  volume  = {116},
  number  = {23},
  pages   = {11537--11546},
  year    = {2019},
  doi     = {10.1073/pnas.1820226116},
}""",
    "jaderberg2017": """\
@inproceedings{jaderberg2017,
  title     = {Decoupled Neural Interfaces using Synthetic Gradients},
  author    = {Jaderberg, Max and Czarnecki, Wojciech Marian and Osindero, Simon and Vinyals, Oriol and Graves, Alex and
               Silver, David and Kavukcuoglu, Koray},
  booktitle = {Proceedings of the 34th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {70},
  pages     = {1627--1635},
  year      = {2017},
  url       = {https://proceedings.mlr.press/v70/jaderberg17a.html},
}""",
    "huo2018": """\
@inproceedings{huo2018,
  title     = {Training Neural Networks Using Features Replay},
  author    = {Huo, Zhouyuan and Gu, Bin and Huang, Heng},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {31},
  year      = {2018},
}""",
    "li2020": """\
@article{li2020,
  title   = {{PyTorch} Distributed: Experiences on Accelerating Data Parallel Training},
  author  = {Li, Shen and Zhao, Yanli and Varma, Rohan and Salpekar, Omkar and Noordhuis, Pieter and Li, Teng and
             Paszke, Adam and Smith, Jeff and Vaughan, Brian and Damania, Pritam and Chintala, Soumith},
  journal = {Proceedings of the VLDB Endowment},
  volume  = {13},
  number  = {12},
  pages   = {3005--3018},
  year    = {2020},
}""",
    "huang2019": """\
@inproceedings{huang2019,
  title     = {{GPipe}: Efficient Training of Giant Neural Networks using Pipeline Parallelism},
  author    = {Huang, Yanping and Cheng, Youlong and Bapna, Ankur and Firat, Orhan and Chen, Dehao and Chen, Mia and
               Lee, HyoukJoong and Ngiam, Jiquan and Le, Quoc V. and Wu, Yonghui and Chen, Zhifeng},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {32},
  year      = {2019},
}""",
    "narayanan2021": """\
@inproceedings{narayanan2021,
  title     = {Memory-Efficient Pipeline-Parallel {DNN} Training},
  author    = {Narayanan, Deepak and Phanishayee, Amar and Shi, Kaiyu and Chen, Xie and Zaharia, Matei},
  booktitle = {Proceedings of the 38th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {139},
  pages     = {7937--7947},
  year      = {2021},
}""",
    "mocanu2018": """\
@article{mocanu2018,
  title   = {Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
             science},
  author  = {Mocanu, Decebal Constantin and Mocanu, Elena and Stone, Peter and Nguyen, Phuong H. and
             Gibescu, Madeleine and Liotta, Antonio},
  journal = {Nature Communications},
  volume  = {9},
  number  = {1},
  pages   = {2383},
  year    = {2018},
  doi     = {10.1038/s41467-018-04316-3},
}""",
    "evci2020": """\
@inproceedings{evci2020,
  title     = {Rigging the Lottery: Making All Tickets Winners},
  author    = {Evci, Utku and Gale, Trevor and Menick, Jacob and Castro, Pablo Samuel and Elsen, Erich},
  booktitle = {Proceedings of the 37th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {119},
  pages     = {2943--2952},
  year      = {2020},
  url       = {https://proceedings.mlr.press/v119/evci20a.html},
}""",
    "dettmers2019": """\
@misc{dettmers2019,
  title         = {Sparse Networks from Scratch: Faster Training without Losing Performance},
  author        = {Dettmers, Tim and Zettlemoyer, Luke},
  year          = {2019},
  eprint        = {1907.04840},
  archiveprefix = {arXiv},
}""",
    "liu2021": """\
@inproceedings{liu2021,
  title     = {Do We Actually Need Dense Over-Parameterization? {In-Time} Over-Parameterization in Sparse Training},
  author    = {Liu, Shiwei and Yin, Lu and Mocanu, Decebal Constantin and Pechenizkiy, Mykola},
  booktitle = {Proceedings of the 38th International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {139},
  pages     = {6989--7000},
  year      = {2021},
  url       = {https://proceedings.mlr.press/v139/liu21y.html},
}""",
    "curci2021": """\
@misc{curci2021,
  title         = {Truly Sparse Neural Networks at Scale},
  author        = {Curci, Selima and Mocanu, Decebal Constantin and Pechenizkiy, Mykola},
  year          = {2021},
  eprint        = {2102.01732},
  archiveprefix = {arXiv},
}""",
    "ivan2020": """\
@misc{ivan2020,
  title         = {Training highly effective connectivities within neural networks with randomly initialized, fixed
                   weights},
  author        = {Ivan, Cristian and Florian, Razvan},
  year          = {2020},
  eprint        = {2006.16627},
  archiveprefix = {arXiv},
}""",
    "zhou2019": """\
@inproceedings{zhou2019,
  title     = {Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask},
  author    = {Zhou, Hattie and Lan, Janice and Liu, Rosanne and Yosinski, Jason},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {32},
  year      = {2019},
  note      = {arXiv:1905.01067},
}""",
    "ramanujan2020": """\
@inproceedings{ramanujan2020,
  title     = {What's Hidden in a Randomly Weighted Neural Network?},
  author    = {Ramanujan, Vivek and Wortsman, Mitchell and Kembhavi, Aniruddha and Farhadi, Ali and
               Rastegari, Mohammad},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020},
  doi       = {10.1109/CVPR42600.2020.01191},
}""",
    "koster2022": """\
@inproceedings{koster2022,
  title     = {Signing the Supermask: Keep, Hide, Invert},
  author    = {Koster, Nils and Grothe, Oliver and Rettinger, Achim},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  url       = {https://openreview.net/forum?id=e0jtGTfPihs},
}""",
    "frankle2019": """\
@inproceedings{frankle2019,
  title     = {The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks},
  author    = {Frankle, Jonathan and Carbin, Michael},
  booktitle = {International Conference on Learning Representations},
  year      = {2019},
  url       = {https://openreview.net/forum?id=rJl-b3RcF7},
}""",
    "glorot2010": """\
@inproceedings{glorot2010,
  title     = {Understanding the difficulty of training deep feedforward neural networks},
  author    = {Glorot, Xavier and Bengio, Yoshua},
  booktitle = {Proceedings of the Thirteenth International Conference on Artificial Intelligence and Statistics},
  series    = {Proceedings of Machine Learning Research},
  volume    = {9},
  pages     = {249--256},
  year      = {2010},
  url       = {https://proceedings.mlr.press/v9/glorot10a.html},
}""",
    "he2015": """\
@inproceedings{he2015,
  title     = {Delving Deep into Rectifiers: Surpassing Human-Level Performance on {ImageNet} Classification},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {Proceedings of the IEEE International Conference on Computer Vision},
  pages     = {1026--1034},
  year      = {2015},
  doi       = {10.1109/ICCV.2015.123},
}""",
    "he2016": """\
@inproceedings{he2016,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  pages     = {770--778},
  year      = {2016},
  doi       = {10.1109/CVPR.2016.90},
}""",
    "lecun1998": """\
@article{lecun1998,
  title   = {Gradient-based learning applied to document recognition},
  author  = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume  = {86},
  number  = {11},
  pages   = {2278--2324},
  year    = {1998},
  doi     = {10.1109/5.726791},
}""",
    "haber2017": """\
@article{haber2017,
  title   = {Stable architectures for deep neural networks},
  author  = {Haber, Eldad and Ruthotto, Lars},
  journal = {Inverse Problems},
  volume  = {34},
  number  = {1},
  pages   = {014004},
  year    = {2017},
  doi     = {10.1088/1361-6420/aa9a90},
}""",
    "haber2018": """\
@inproceedings{haber2018,
  title     = {Learning Across Scales -- Multiscale Methods for Convolution Neural Networks},
  author    = {Haber, Eldad and Ruthotto, Lars and Holtham, Elliot and Jun, Seong-Hwan},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume    = {32},
  number    = {1},
  year      = {2018},
  note      = {arXiv:1703.02009},
}""",
    "chang2018": """\
@inproceedings{chang2018,
  title     = {Reversible Architectures for Arbitrarily Deep Residual Neural Networks},
  author    = {Chang, Bo and Meng, Lili and Haber, Eldad and Ruthotto, Lars and Begert, David and Holtham, Elliot},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume    = {32},
  number    = {1},
  year      = {2018},
  note      = {arXiv:1709.03698},
}""",
    "galimberti2021": """\
@misc{galimberti2021,
  title         = {{Hamiltonian} Deep Neural Networks Guaranteeing Non-vanishing Gradients by Design},
  author        = {Galimberti, Clara Luc{\\'i}a and Furieri, Luca and Xu, Liang and Ferrari-Trecate, Giancarlo},
  year          = {2021},
  eprint        = {2105.13205},
  archiveprefix = {arXiv},
}""",
    "onken2019": """\
@misc{onken2019,
  title        = {{DynamicBlocks}: A Generalized {ResNet} Architecture},
  author       = {Onken, Derek and Novikov, Simion and Treister, Eran and Haber, Eldad and Ruthotto, Lars},
  year         = {2019},
  howpublished = {Software},
  url          = {https://github.com/EmoryMLIP/DynamicBlocks},
}""",
    "scellier2017": """\
@article{scellier2017,
  title   = {Equilibrium Propagation: Bridging the Gap between Energy-Based Models and Backpropagation},
  author  = {Scellier, Benjamin and Bengio, Yoshua},
  journal = {Frontiers in Computational Neuroscience},
  volume  = {11},
  pages   = {24},
  year    = {2017},
  doi     = {10.3389/fncom.2017.00024},
}""",
    "scellier2018": """\
@misc{scellier2018,
  title         = {Generalization of Equilibrium Propagation to Vector Field Dynamics},
  author        = {Scellier, Benjamin and Goyal, Anirudh and Binas, Jonathan and Mesnard, Thomas and Bengio, Yoshua},
  year          = {2018},
  eprint        = {1808.04873},
  archiveprefix = {arXiv},
}""",
    "farinha2020": """\
@misc{farinha2020,
  title         = {Equilibrium Propagation for Complete Directed Neural Networks},
  author        = {Farinha, Matilde Tristany and Pequito, S{\\'e}rgio and Santos, Pedro A. and
                   Figueiredo, M{\\'a}rio A. T.},
  year          = {2020},
  eprint        = {2006.08798},
  archiveprefix = {arXiv},
}""",
    "laborieux2021": """\
@article{laborieux2021,
  title   = {Scaling Equilibrium Propagation to Deep {ConvNets} by Drastically Reducing Its Gradient Estimator Bias},
  author  = {Laborieux, Axel and Ernoult, Maxence and Scellier, Benjamin and Bengio, Yoshua and Grollier, Julie and
             Querlioz, Damien},
  journal = {Frontiers in Neuroscience},
  volume  = {15},
  pages   = {633674},
  year    = {2021},
  doi     = {10.3389/fnins.2021.633674},
}""",
    "scurria2026": """\
@misc{scurria2026,
  title         = {Equilibrium Propagation for Non-Conservative Systems},
  author        = {Scurria, Antonino Emanuele and Vanden Abeele, Dimitri and Mognetti, Bortolo Matteo and
                   Massar, Serge},
  year          = {2026},
  eprint        = {2602.03670},
  archiveprefix = {arXiv},
}""",
    "ferris1994": """\
@article{ferris1994,
  title   = {Parallel Variable Distribution},
  author  = {Ferris, Michael C. and Mangasarian, Olvi L.},
  journal = {SIAM Journal on Optimization},
  volume  = {4},
  number  = {4},
  pages   = {815--832},
  year    = {1994},
  doi     = {10.1137/0804047},
}""",
    "solodov1997": """\
@article{solodov1997,
  title   = {New Inexact Parallel Variable Distribution Algorithms},
  author  = {Solodov, Mikhail V.},
  journal = {Computational Optimization and Applications},
  volume  = {7},
  number  = {2},
  pages   = {165--182},
  year    = {1997},
}""",
    "xiao2017": """\
@misc{xiao2017,
  title         = {{Fashion-MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author        = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  year          = {2017},
  eprint        = {1708.07747},
  archiveprefix = {arXiv},
  primaryclass  = {cs.LG},
}""",
    "krizhevsky2009": """\
@techreport{krizhevsky2009,
  title       = {Learning Multiple Layers of Features from Tiny Images},
  author      = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year        = {2009},
}""",
    "alpaydin1998": """\
@misc{alpaydin1998,
  title        = {Optical Recognition of Handwritten Digits},
  author       = {Alpaydin, Ethem and Kaynak, Cenk},
  year         = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi          = {10.24432/C50P49},
}""",
    "paszke2019": """\
@inproceedings{paszke2019,
  title     = {{PyTorch}: An Imperative Style, High-Performance Deep Learning Library},
  author    = {Paszke, Adam and Gross, Sam and Massa, Francisco and Lerer, Adam and Bradbury, James and
               Chanan, Gregory and Killeen, Trevor and Lin, Zeming and Gimelshein, Natalia and Antiga, Luca and
               Desmaison, Alban and K{\\"o}pf, Andreas and Yang, Edward and DeVito, Zachary and Raison, Martin and
               Tejani, Alykhan and Chilamkurthy, Sasank and Steiner, Benoit and Fang, Lu and Bai, Junjie and
               Chintala, Soumith},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {32},
  pages     = {8024--8035},
  year      = {2019},
}""",
}

DATA_SETS = {
    "mnist": "lecun1998",
    "fashion": "xiao2017",
    "cifar10": "krizhevsky2009",
    "digits": "alpaydin1998",
    **dict.fromkeys(("ellipses", "swiss-roll", "circle", "peaks"), "haber2017"),
}


def cited(runs: Sequence[RunRecord]) -> tuple[list[str], list[str]]:
    """What to cite for these runs: keys of `BIBTEX`, and the names that stand in no entry of it.

    Synaptome first, then the methods that ran, as the summaries list them, then the data sets.
    """
    methods = [key for run in runs for key in _strings(run.summary.get("citations"))]
    data = [DATA_SETS[name] for run in runs if (name := _data(run)) in DATA_SETS]
    keys = list(dict.fromkeys(["synaptome", *methods, *data]))
    return [key for key in keys if key in BIBTEX], [clean(key) for key in keys if key not in BIBTEX]


def _strings(value: object) -> Iterable[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _data(run: RunRecord) -> str:
    options = run.recipe.get("options")
    return str(options.get("data")) if isinstance(options, dict) else ""
