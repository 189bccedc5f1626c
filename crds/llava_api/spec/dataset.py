"""The dataset: where it is, in which form, what is held out."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.rules import rule, rules
from llava_api.spec.sources import Source
from llava_api.spec.values import RelativePath, SecretRef


class Ubiai(Strict):
    """How to read a UBIAI export."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.questionLabel != self.answerLabel",
                "questionLabel and answerLabel must differ: set them to the labels of the questions and of the answers",
                field=".answerLabel",
            )
        )
    )

    question_label: Annotated[
        str, Field(min_length=1, max_length=128, description="Entity label of the spans that are questions.")
    ] = "QUESTION"
    answer_label: Annotated[
        str, Field(min_length=1, max_length=128, description="Entity label of the spans that are answers.")
    ] = "ANSWER"
    relation_label: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            description="Label of the relation that links a question to its answer, in either direction.",
        ),
    ] = "LINK"
    documents: Annotated[
        RelativePath | None,
        Field(
            description="JSON file, relative to the source, that maps each document to its picture: an object from "
            "documentName (or from the document's index in the export, counted from 0) to the picture's path below "
            "`images`. Without it, documentName itself must be that path."
        ),
    ] = None
    samples: Annotated[
        Literal["document", "pair"],
        Field(description="`document`: one conversation with all questions of a document; `pair`: one sample a linked "
                          "question and answer."),
    ] = "document"  # fmt: skip
    questions: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=128)],
            Annotated[str, Field(min_length=1, max_length=1024)],
        ],
        Field(
            max_length=64,
            description="Question to ask for each entity label, for exports without linked questions (entities only, "
            "or OCR): the label's text is the answer.",
        ),
    ] = {}


class Validation(Strict):
    """Which samples are held out from training, and scored by evaluation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.fraction) != has(self.file)",
                "set either fraction or file: a share of the samples to hold out, or a file with the held-out samples",
            ),
            rule(
                "!has(self.fraction) || self.fraction <= 0.5",
                "fraction is a share and no percentage, at most 0.5: 5 % are 0.05",
                field=".fraction",
            ),
        )
    )

    fraction: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.5,
            description="Share of the question-answer pairs to hold out. All of one picture and of one group stay "
            "together, so the share is met as nearly as that allows.",
        ),
    ] = None
    file: Annotated[
        RelativePath | None,
        Field(
            description="File with the held-out samples, relative to the source, in the same format as `file`. A "
            "question in it that training asks about the same picture is refused; groups that are in both files are "
            "counted, and told beside the score."
        ),
    ] = None


class DataLimits(Strict):
    """What is refused before a GPU is taken."""

    unsupervised_share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Largest share of samples from which nothing is learned (every answer is blank or cut off at "
            "maxLength, or a text holds one of the model's own tokens, like </s>). They are left out and counted; more "
            "than this share of them ends the run.",
        ),
    ] = 0.01
    image_pixels: Annotated[
        int,
        Field(
            ge=1024,
            le=2**31 - 1,
            description="Most pixels of a picture (width x height): protects from decompression bombs. Decoding takes "
            "up to 8 bytes of prepare's memory for each.",
        ),
    ] = 100_000_000


class Dataset(Strict):
    """The pictures, questions and answers to learn from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.format == 'ubiai' || !has(self.ubiai)",
                "ubiai is only read with format ubiai: remove it or set format to ubiai",
                field=".ubiai",
            )
        )
    )

    source: Annotated[
        Source,
        Field(
            description="Folder with the dataset. pvc://CLAIM/PATH is mounted read-only and read in place; "
            "hf://OWNER/NAME@REVISION (a dataset repository), s3://BUCKET/PREFIX and https:// are fetched once."
        ),
    ]
    format: Annotated[
        Literal["llava", "ubiai"],
        Field(
            description="`llava`: {id, image, conversations: [{from: human|gpt, value}]} entries as a JSON list or "
            "as JSON lines; image is a path or a list of paths, each shown by an `<image>` in a question; references "
            "(further right answers to the last question), question_type, and group (a document, a patient: its "
            "entries stay on one side of every split) are optional. "
            "`ubiai`: a UBIAI export: JSON with relations or with entities only, or the OCR archive; a document is a "
            "group."
        ),
    ]
    file: Annotated[
        RelativePath,
        Field(
            min_length=1,
            description="The dataset's file, relative to the source. Of an OCR archive: the file with the words "
            "(NAME.txt); NAME_box.txt and NAME_image.txt lie beside it.",
        ),
    ]
    images: Annotated[
        RelativePath,
        Field(
            description="Folder that picture paths are relative to, itself relative to the source. Where hf:// or "
            "s3:// has NAME.zip instead of a folder NAME, that is unpacked."
        ),
    ] = ""
    image_aspect_ratio: Annotated[
        Literal["pad", "square"],
        Field(
            description="`pad` makes a picture square by adding a border of the vision tower's mean colour (LLaVA "
            "v1.5's recipe); `square` cuts the centre out."
        ),
    ] = "pad"
    ubiai: Annotated[Ubiai | None, Field(description="How to read a UBIAI export. Only with format ubiai.")] = None
    validation: Annotated[Validation, Field(description="Which samples are held out.")] = Validation(fraction=0.05)
    limits: Annotated[DataLimits, Field(description="What is refused before a GPU is taken.")] = DataLimits()
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Credentials for source, mounted as files in prepare only. Keys: token (hf), accessKeyId, "
            "secretAccessKey, sessionToken, endpoint, region (s3), username and password or bearer (https)."
        ),
    ] = None
