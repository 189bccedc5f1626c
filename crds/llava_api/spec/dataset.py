"""The dataset: where it is, in which form, what is held out."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.rules import rule, rules
from llava_api.spec.sources import Source
from llava_api.spec.values import RelativePath, SecretRef

ColumnName = Annotated[str, Field(min_length=1, max_length=256)]


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


class Messages(Strict):
    """How to read messages of a chat."""

    system_message: Annotated[
        Literal["ignore", "use"],
        Field(
            description="What becomes of system messages. `ignore`: LLaVA's own text stands in their place, as serving "
            "has it unless it is told otherwise; they are counted in the dataset report. `use`: they replace it, in "
            "training and in scores; whoever serves the model has to send the same one."
        ),
    ] = "ignore"


class Table(Strict):
    """Which column of a table is what."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.turns) ? !has(self.question) && !has(self.answer) : has(self.question) && has(self.answer)",
                "name either question and answer (a row is a question), or turns (a row is a conversation)",
            )
        )
    )

    image: Annotated[
        ColumnName | None,
        Field(
            description="Column with the picture, or a list of pictures: paths, data: URLs, bytes, or structs of bytes "
            "and path. Left out: rows without pictures."
        ),
    ] = None
    question: Annotated[ColumnName | None, Field(description="Column with the question.")] = None
    answer: Annotated[
        ColumnName | None,
        Field(description="Column with the answer. Of a list of right answers the first is learned."),
    ] = None
    turns: Annotated[
        ColumnName | None,
        Field(
            description="Instead of question and answer: column with a list of turns, each {user, assistant}, {role, "
            "content} or {from, value}. In text files it is written as JSON."
        ),
    ] = None
    references: Annotated[
        ColumnName | None,
        Field(description="Column with further right answers to the last question, a text or a list."),
    ] = None
    question_type: Annotated[
        ColumnName | None, Field(description="Column with the kind of question, for scores by kind.")
    ] = None
    group: Annotated[
        ColumnName | None,
        Field(
            description="Column with what a row belongs to (a document, a patient): all of it stays on one side of "
            "every split."
        ),
    ] = None
    id: Annotated[ColumnName | None, Field(description="Column with a name of the row, for reports.")] = None


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
            ),
            rule(
                "self.format == 'messages' || !has(self.messages)",
                "messages is only read with format messages: remove it or set format to messages",
                field=".messages",
            ),
            rule(
                "(self.format == 'table') == has(self.table)",
                "format table goes with table, which names the columns: set both or neither",
                field=".table",
            ),
            rule(
                "self.format != 'ubiai' || !self.file.contains('*') && "
                "!(has(self.validation.file) && self.validation.file.contains('*'))",
                "file and validation.file must name one file each with format ubiai: only other formats may be in "
                "several, like data/train-*.parquet",
                field=".file",
            ),
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
        Literal["llava", "messages", "table", "ubiai"],
        Field(
            description="`llava`: {id, image, conversations: [{from: human|gpt, value}]} entries as a JSON list or "
            "as JSON lines; image is a path or a list of paths, each shown by an `<image>` in a question; references "
            "(further right answers to the last question), question_type, and group (a document, a patient: its "
            "entries stay on one side of every split) are optional. "
            "`messages`: {messages: [{role, content}], images} entries as OpenAI's fine-tuning, TRL and LLaMA-Factory "
            "have them, or ShareGPT's {conversations: [{from, value}], system}, as a JSON list or as JSON lines; "
            "content is a text or a list of parts; pictures are paths or data: URLs in image_url parts, or stand in "
            "images, each shown by an `<image>`, or all by the first question; references, question_type and group as "
            "above. "
            "`table`: CSV, TSV, JSON lines or Parquet, whose columns table names. "
            "`ubiai`: a UBIAI export: JSON with relations or with entities only, or the OCR archive; a document is a "
            "group."
        ),
    ]
    file: Annotated[
        RelativePath,
        Field(
            min_length=1,
            description="The dataset's file, relative to the source. A `*` stands for any part of a name: "
            "data/train-*.parquet are all shards, in the order of their names. Of an OCR archive: the file with the "
            "words (NAME.txt); NAME_box.txt and NAME_image.txt lie beside it.",
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
    messages: Annotated[
        Messages | None, Field(description="How to read messages of a chat. Only with format messages.")
    ] = None
    table: Annotated[
        Table | None, Field(description="Which column of a table is what. With format table, and only then.")
    ] = None
    validation: Annotated[Validation, Field(description="Which samples are held out.")] = Validation(fraction=0.05)
    limits: Annotated[DataLimits, Field(description="What is refused before a GPU is taken.")] = DataLimits()
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Credentials for source, mounted as files in prepare only. Keys: token (hf), accessKeyId, "
            "secretAccessKey, sessionToken, endpoint, region (s3), username and password or bearer (https)."
        ),
    ] = None
